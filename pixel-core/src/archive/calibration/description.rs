//! What a calibration file says of itself: the texts, the groups, and how much each token counts.

use super::{CALIBRATION_KEY, VERSION_MAJOR, VERSION_MINOR};
use crate::archive::writer::Metadata;
use crate::archive::{PRODUCER, TensorPlan};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How much each token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Every token equally: the unweighted moments of the inputs, one group for all weights that read them.
    #[default]
    Uniform,
    /// By the power of the gradient of the model's output in the output of the layer, one group for each weight:
    /// `‖g‖²/d_output`. Then `½·tr(E·H·Eᵀ)` estimates what an error `E` of this weight does to the model's output.
    Gradient,
}

/// A text that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// BLAKE3 of its bytes.
    pub blake3: String,
    /// The tokens taken from it.
    pub tokens: u64,
}

/// Weights that share their inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The width of the inputs.
    pub d_input: usize,
    /// The tokens seen.
    pub tokens: u64,
    /// The tensors, in the order of their names.
    pub weights: Vec<String>,
}

/// The description in a calibration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `major.minor`.
    pub version: String,
    /// The program that wrote the file.
    pub producer: String,
    /// How much each token counts.
    pub weighting: Weighting,
    /// The texts.
    pub sources: Vec<Source>,
    /// The groups, by name.
    pub groups: BTreeMap<String, Group>,
}

impl Description {
    /// A description without groups.
    pub fn new(weighting: Weighting, sources: Vec<Source>) -> Self {
        Self {
            version: format!("{VERSION_MAJOR}.{VERSION_MINOR}"),
            producer: PRODUCER.to_owned(),
            weighting,
            sources,
            groups: BTreeMap::new(),
        }
    }

    pub(super) fn to_metadata(&self) -> Metadata {
        let text = serde_json::to_string(self).expect("strings, numbers and maps with string keys");
        [(CALIBRATION_KEY.to_owned(), text)].into()
    }

    pub(super) fn plans(&self) -> Vec<TensorPlan> {
        let plans = self.groups.iter().flat_map(|(name, group)| {
            let n = group.d_input;
            let plan =
                |suffix, len| TensorPlan { name: format!("{name}.{suffix}"), dtype: Dtype::F32, shape: vec![len] };
            [plan("moments", n * (n + 1) / 2), plan("mean", n), plan("powers", 3)]
        });
        plans.collect()
    }
}
