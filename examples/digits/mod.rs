//! A model, its data and its training, as they may look before anyone thinks of compression.
//!
//! ```text
//! data ──▶ train ──▶ model          replace_layers, finetune_compressed
//! images   weights   Classifier ──▶ compress ──▶ a smaller Classifier
//! ```

pub(crate) mod compress;
pub(crate) mod data;
pub(crate) mod model;
pub(crate) mod shuffle;
pub(crate) mod train;
