//! The outcome of a run, with sizes in bytes as written.

use crate::encode::{LowRankSpec, Outcome};
use crate::math::metrics::{ErrorSums, bits_per_weight};
use crate::plan::{Decision, KeepReason, PlanItem, Role};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The outcome for one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// The tensor.
    pub name: String,
    /// What it is for, by its name.
    pub role: Role,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The codec as text, if it was compressed.
    pub codec: Option<String>,
    /// Why it was stored unchanged, if it was.
    pub kept: Option<KeepReason>,
    /// Protected columns, stored in F16 in place of codes.
    pub protected: usize,
    /// The low-rank part in addition to the codes; absent if there is none.
    pub low_rank: Option<LowRankSpec>,
    /// Bytes of its factors, part of `stored_bytes`.
    pub low_rank_bytes: u64,
    /// Bytes in the source.
    pub source_bytes: u64,
    /// Bytes stored, without headers.
    pub stored_bytes: u64,
    /// Relative mean squared error; absent for a tensor stored unchanged.
    pub relative_mse: Option<f64>,
    /// Relative error of the layer's outputs on the inputs of the calibration; absent without one.
    pub output_loss: Option<f64>,
    /// What error feedback added to the diagonal of the moments, in units of its mean; absent without feedback.
    pub damping: Option<f64>,
    /// How often damping was doubled because the moments were not positive definite.
    pub damping_retries: u32,
    /// Power and error, for sums over tensors.
    #[serde(skip)]
    pub sums: ErrorSums,
}

impl TensorReport {
    pub(super) fn new(item: &PlanItem, outcome: Option<Outcome>) -> Self {
        let output = outcome.and_then(|outcome| outcome.output);
        let (kept, coding) = match &item.decision {
            Decision::Keep(reason) => (Some(*reason), None),
            Decision::Compress(_) => (None, item.coding()),
        };
        let fed_back = output.filter(|_| coding.is_some_and(|(spec, _)| spec.feedback.is_some()));
        let low_rank = coding.and_then(|(spec, shape)| Some((spec.low_rank?, shape)));
        Self {
            name: item.name.clone(),
            role: item.role,
            shape: item.shape.clone(),
            codec: coding.map(|(spec, _)| spec.codec.to_string()),
            kept,
            protected: coding.map_or(0, |(spec, _)| spec.protect),
            low_rank: low_rank.map(|(spec, _)| spec),
            low_rank_bytes: low_rank.map_or(0, |(spec, shape)| spec.num_bytes(shape) as u64),
            source_bytes: item.source_bytes,
            stored_bytes: item.stored_bytes,
            relative_mse: outcome.map(|outcome| outcome.weight.relative_mse()),
            output_loss: output.map(|output| output.sums.relative_mse()),
            damping: fed_back.map(|output| output.damping),
            damping_retries: fed_back.map_or(0, |output| output.retries),
            sums: outcome.map(|outcome| outcome.weight).unwrap_or_default(),
        }
    }

    /// The number of values.
    pub fn num_weights(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }

    /// Bits stored per value.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.stored_bytes, self.num_weights())
    }
}

/// The outcome for the tensors that were treated the same way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GroupReport {
    /// The codec as text, or "as it was" for tensors stored unchanged.
    pub treatment: String,
    /// How many tensors.
    pub tensors: usize,
    /// How many values.
    pub weights: u64,
    /// Bytes stored, without headers.
    pub stored_bytes: u64,
    /// Power and error.
    #[serde(skip)]
    pub sums: ErrorSums,
    /// How many of the tensors have a low-rank part.
    pub low_rank: usize,
    /// Bytes of their factors, part of `stored_bytes`.
    pub low_rank_bytes: u64,
    /// How many of the tensors were calibrated, so that the error of their outputs is known.
    pub calibrated: usize,
    /// The mean of their output losses, each by its number of weights; 0 if there is none.
    pub output_loss: f64,
}

impl GroupReport {
    /// Bits stored per value.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.stored_bytes, self.weights)
    }
}

/// The outcome for a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompressionReport {
    /// The tensors in the order of their names.
    pub tensors: Vec<TensorReport>,
    /// Bytes of the source's weight files, including headers.
    pub source_file_bytes: u64,
    /// Bytes of the weight files, including headers.
    pub weight_file_bytes: u64,
    /// Bytes of the files copied along, of the index, and of the list of files.
    pub side_file_bytes: u64,
    /// Files copied along that hold weights: those of the modules that `modules.json` of sentence-transformers lists.
    #[serde(serialize_with = "lossy")]
    pub copied_weights: Vec<PathBuf>,
    /// Files of the source that were not copied: weights in another form, links to directories, broken links.
    #[serde(serialize_with = "lossy")]
    pub left_out: Vec<PathBuf>,
}

/// Paths as text, also where they are not UTF-8.
fn lossy<S: serde::Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

impl CompressionReport {
    /// Weights that were compressed.
    pub fn num_compressed(&self) -> u64 {
        self.compressed().map(TensorReport::num_weights).sum()
    }

    /// Bits per weight over the weights that were compressed, with everything stored for them except the header.
    pub fn compressed_bits_per_weight(&self) -> f64 {
        bits_per_weight(self.compressed().map(|tensor| tensor.stored_bytes).sum(), self.num_compressed())
    }

    /// Bits per value over all tensors and the header.
    pub fn total_bits_per_weight(&self) -> f64 {
        bits_per_weight(self.weight_file_bytes, self.tensors.iter().map(TensorReport::num_weights).sum())
    }

    /// The tensors summed up by codec, those stored unchanged last.
    pub fn groups(&self) -> Vec<GroupReport> {
        let mut groups: BTreeMap<(bool, &str), GroupReport> = BTreeMap::new();
        let mut calibrated_weights: BTreeMap<(bool, &str), f64> = BTreeMap::new();
        for tensor in &self.tensors {
            let treatment = tensor.codec.as_deref().unwrap_or("as it was");
            let group = groups.entry((tensor.codec.is_none(), treatment)).or_insert_with(|| GroupReport {
                treatment: treatment.to_owned(),
                tensors: 0,
                weights: 0,
                stored_bytes: 0,
                sums: ErrorSums::default(),
                low_rank: 0,
                low_rank_bytes: 0,
                calibrated: 0,
                output_loss: 0.0,
            });
            group.tensors += 1;
            group.weights += tensor.num_weights();
            group.stored_bytes += tensor.stored_bytes;
            group.sums += tensor.sums;
            group.low_rank += usize::from(tensor.low_rank.is_some());
            group.low_rank_bytes += tensor.low_rank_bytes;
            if let Some(loss) = tensor.output_loss {
                let weights = tensor.num_weights() as f64;
                let before = calibrated_weights.entry((tensor.codec.is_none(), treatment)).or_insert(0.0);
                group.output_loss = (group.output_loss * *before + loss * weights) / (*before + weights);
                *before += weights;
                group.calibrated += 1;
            }
        }
        groups.into_values().collect()
    }

    /// Relative mean squared error over all weights that were compressed, `Σ error / Σ power`.
    pub fn relative_mse(&self) -> f64 {
        let mut sums = ErrorSums::default();
        self.compressed().for_each(|tensor| sums += tensor.sums);
        sums.relative_mse()
    }

    /// Source bytes over stored bytes, weight files only.
    pub fn compression_ratio(&self) -> f64 {
        self.source_file_bytes as f64 / self.weight_file_bytes as f64
    }

    fn compressed(&self) -> impl Iterator<Item = &TensorReport> {
        self.tensors.iter().filter(|tensor| tensor.codec.is_some())
    }
}
