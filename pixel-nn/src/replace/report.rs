//! What was replaced, at which cost and error, and what was not.

use pixel_core::math::metrics::{ErrorSums, bits_per_weight};
use pixel_core::{CodecSpec, Shape};
use serde::Serialize;
use std::fmt::{Display, Formatter, Result};

/// The outcome for one weight that was replaced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// The path of the parameter.
    pub name: String,
    /// The shape as a matrix, `[d_output, d_input]`.
    pub shape: Shape,
    /// The codec.
    pub codec: CodecSpec,
    /// Bits per weight as an archive stores it, scales and padding counted.
    pub bits_per_weight: f64,
    /// `‖W − Ŵ‖ / ‖W‖`.
    pub relative_error: f64,
    /// `‖x·(W − Ŵ)‖ / ‖x·W‖` over the inputs of the calibration, where they are known.
    pub output_error: Option<f64>,
    /// Bytes of the dense weight, in the type that it had.
    pub original_bytes: usize,
    /// Bytes that an archive takes for it.
    pub stored_bytes: usize,
    /// Bytes that it holds on its device: codes as stored, scales and dictionary in F32, the tables of the rotation.
    pub device_bytes: usize,
    /// The path of the parameter of equal id and value with which it shares its patterns; totals count them once.
    pub shared_with: Option<String>,
    /// Power and error, for sums over weights.
    #[serde(skip)]
    pub sums: ErrorSums,
}

/// Why a weight stays dense.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SkipReason {
    /// Its kind, embedding or convolution, is replaced on request.
    NotAsked,
    /// Its layer is of a type that is not known here.
    OtherLayer {
        /// The type.
        container: String,
    },
    /// An expression excludes it.
    Excluded,
    /// No expression includes it.
    NotIncluded,
    /// It has fewer values than `min_weights`.
    Small,
    /// Something else is attached to it: a LoRA adapter, or patterns already.
    Reparameterized {
        /// Its name: `lora`, `pixel`.
        by: String,
    },
    /// It is quantized by Burn.
    Quantized,
    /// Its module shows it to visitors, but does not hand it out to be changed.
    NotMapped,
}

impl Display for SkipReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::NotAsked => f.write_str("its kind was not asked for"),
            Self::OtherLayer { container } => write!(f, "in a layer of type {container}"),
            Self::Excluded => f.write_str("excluded"),
            Self::NotIncluded => f.write_str("not included"),
            Self::Small => f.write_str("small"),
            Self::Reparameterized { by } => write!(f, "\"{by}\" is attached to it"),
            Self::Quantized => f.write_str("quantized by Burn"),
            Self::NotMapped => f.write_str("its module does not let it be changed"),
        }
    }
}

/// A weight that stays dense.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptParameter {
    /// The path of the parameter.
    pub name: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// Why.
    pub reason: SkipReason,
}

/// What [`replace_linear_layers`](super::replace_linear_layers) did. Biases, gains of norms and other vectors are left
/// out.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ReplacementReport {
    /// The weights replaced, in the order of the model's fields.
    pub layers: Vec<LayerReport>,
    /// The weights kept, in the order of the model's fields.
    pub kept: Vec<KeptParameter>,
}

impl ReplacementReport {
    /// The number of weights replaced.
    pub fn num_weights(&self) -> usize {
        self.total(|layer| layer.shape.num_weights())
    }

    /// Bytes of the dense weights.
    pub fn original_bytes(&self) -> usize {
        self.total(|layer| layer.original_bytes)
    }

    /// Bytes that an archive takes for them now.
    pub fn stored_bytes(&self) -> usize {
        self.total(|layer| layer.stored_bytes)
    }

    /// Bytes that they hold on their devices now.
    pub fn device_bytes(&self) -> usize {
        self.total(|layer| layer.device_bytes)
    }

    /// Stored bits per weight over all weights replaced; 0 for none.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.stored_bytes() as u64, self.num_weights() as u64)
    }

    /// Original bytes over stored bytes of the weights replaced; 1 for none.
    pub fn compression_ratio(&self) -> f64 {
        if self.layers.is_empty() { 1.0 } else { self.original_bytes() as f64 / self.stored_bytes() as f64 }
    }

    /// `‖W − Ŵ‖ / ‖W‖` over all weights replaced; 0 for none.
    pub fn relative_error(&self) -> f64 {
        let mut sums = ErrorSums::default();
        self.counted().for_each(|layer| sums += layer.sums);
        sums.relative_mse().sqrt()
    }

    /// One line: how many weights, bits, bytes, error.
    pub fn summary(&self) -> String {
        format!(
            "{} of {} weights replaced: {:.3} bits per weight, {} bytes become {} ({:.2}×; {} on the device), \
             relative error {:.4}",
            self.layers.len(),
            self.layers.len() + self.kept.len(),
            self.bits_per_weight(),
            self.original_bytes(),
            self.stored_bytes(),
            self.compression_ratio(),
            self.device_bytes(),
            self.relative_error(),
        )
    }

    fn counted(&self) -> impl Iterator<Item = &LayerReport> {
        self.layers.iter().filter(|layer| layer.shared_with.is_none())
    }

    fn total(&self, bytes: impl Fn(&LayerReport) -> usize) -> usize {
        self.counted().map(bytes).sum()
    }
}

impl Display for ReplacementReport {
    /// A table of the weights replaced, with the errors of their layers' outputs where they are known, those kept with
    /// their reason, and the summary.
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let heads = ["weight", "shape", "codec", "bits", "error", "outputs", "bytes", "stored", "device"];
        let mut rows = vec![heads.map(String::from)];
        rows.extend(self.layers.iter().map(LayerReport::row));
        let is_calibrated = self.layers.iter().any(|layer| layer.output_error.is_some());
        let shown = |column: &usize| is_calibrated || heads[*column] != "outputs";
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 9] = std::array::from_fn(width);
        for row in &rows {
            for (column, (text, width)) in row.iter().zip(widths).enumerate().filter(|(column, _)| shown(column)) {
                match column {
                    0 => write!(f, "{text:<width$}")?,
                    2 => write!(f, "  {text:<width$}")?,
                    _ => write!(f, "  {text:>width$}")?,
                }
            }
            writeln!(f)?;
        }
        for KeptParameter { name, shape, reason } in &self.kept {
            writeln!(f, "kept {name} {shape:?}: {reason}")?;
        }
        f.write_str(&self.summary())
    }
}

impl LayerReport {
    fn row(&self) -> [String; 9] {
        [
            self.name.clone(),
            self.shape.to_string(),
            self.codec.to_string(),
            format!("{:.3}", self.bits_per_weight),
            format!("{:.4}", self.relative_error),
            self.output_error.map_or_else(|| "-".into(), |error| format!("{error:.4}")),
            self.original_bytes.to_string(),
            self.stored_bytes.to_string(),
            self.device_bytes.to_string(),
        ]
    }
}

/// A parameter of a model that has been replaced.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ReplacedParameter {
    /// The path of the parameter.
    pub name: String,
    /// The shape of the parameter, as its layer has it.
    pub dims: Vec<usize>,
    /// The shape as a matrix, `[d_output, d_input]`.
    pub shape: Shape,
    /// The codec.
    pub codec: CodecSpec,
    /// Bytes that an archive takes for it.
    pub stored_bytes: usize,
}

impl ReplacedParameter {
    /// Bits per weight as an archive stores it, scales and padding counted.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.stored_bytes as u64, self.shape.num_weights() as u64)
    }
}
