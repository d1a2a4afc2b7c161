//! One file a command: its arguments, and what it does.

pub(crate) mod codecs;
pub(crate) mod compress;
pub(crate) mod decompress;
pub(crate) mod diff;
pub(crate) mod inspect;
mod run_args;
pub(crate) mod verify;
