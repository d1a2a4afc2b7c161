//! One file a command: its arguments, and what it does.

#[cfg(feature = "models")]
pub(crate) mod calibrate;
pub(crate) mod codecs;
pub(crate) mod compress;
pub(crate) mod decompress;
pub(crate) mod dequantize;
pub(crate) mod diff;
#[cfg(feature = "models")]
pub(crate) mod eval;
pub(crate) mod inspect;
#[cfg(feature = "models")]
mod model_args;
#[cfg(feature = "models")]
pub(crate) mod run;
mod run_args;
#[cfg(feature = "models")]
mod texts;
pub(crate) mod verify;
