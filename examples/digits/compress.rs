//! The one step that makes a classifier smaller.

use anyhow::Result;
use pixel_core::CodecSpec;
use pixel_nn::{ReplaceConfig, ReplacementReport, replace_linear_layers};

use super::model::Classifier;

/// Replaces every `Linear` of the model by patterns and scales at the given rate, in bits per weight.
///
/// The type of the model stays: what used it before goes on using it.
pub(crate) fn compress(model: Classifier, bits: f64) -> Result<(Classifier, ReplacementReport)> {
    let config = ReplaceConfig::new(CodecSpec::new("trellis", bits));
    Ok(replace_linear_layers(model, &config)?)
}
