//! What is known of PIXEL's kernels on GPUs.
//!
//! Without one: [`record`] runs operations on a driver that only writes down what it is given, [`assembler`] makes
//! machine code of the kernels for several architectures, [`sass`] counts its instructions, and [`roof`] says what a
//! device could do with them.

pub mod assembler;
pub mod cases;
pub mod record;
pub mod roof;
pub mod sass;
