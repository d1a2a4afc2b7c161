//! What is known of PIXEL's kernels on GPUs.
//!
//! Without one: [`record`] runs operations on a driver that only writes down what it is given, [`assembler`] makes
//! machine code of the kernels for several architectures, [`sass`] counts its instructions, and [`roof`] says what a
//! device could do with them.
//!
//! On one: [`report`] times products and whole [`models`], beside copies and dense products.

pub mod assembler;
pub mod cases;
pub mod models;
pub mod record;
pub mod report;
pub mod roof;
pub mod sass;
pub mod timing;
