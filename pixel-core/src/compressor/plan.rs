//! What will be done with each tensor of a checkpoint, and how many bytes that will take, to the byte.

use crate::archive::error::ArchiveError;
use crate::archive::reader::{safetensors_dtype, stream_name};
use crate::archive::shard_writer::{TensorPlan, data_start, header, in_file_order};
use crate::archive::{Checkpoint, FloatType, MANIFEST_KEY, Manifest, PackedEntry, TensorInfo};
use crate::calibration::Calibration;
use crate::codec::{CodecSpec, StreamSpec};
use crate::encode::{EncodeOptions, Outcome, compress};
use crate::error::{ConfigError, WeightError};
use crate::feedback::{Feedback, FeedbackOptions};
use crate::low_rank::LowRankSpec;
use crate::matrix::{Matrix, Shape};
use crate::moments::Moments;
use crate::packed::{PackedWeight, stored_streams};
use crate::recipe::{CompiledRecipe, Decision, KeepReason};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The plan for a checkpoint.
#[derive(Debug)]
pub struct Plan {
    items: Vec<PlanItem>,
    shards: Vec<ShardPlan>,
    feedback: FeedbackOptions,
    calibration: Option<Arc<Calibration>>,
    low_rank: Option<Arc<dyn LowRankFitter>>,
}

/// Finds the low-rank parts of a model's weights, which decompose them; `pixel-experimental` has one.
pub trait LowRankFitter: std::fmt::Debug + Send + Sync {
    /// Compresses `weight` into codes beside a low-rank part of `job.low_rank`, as `job` says.
    ///
    /// # Errors
    /// [`WeightError`].
    fn compress(&self, weight: Matrix, job: FitJob<'_>) -> Result<(PackedWeight, Outcome), WeightError>;

    /// What the low-rank part leaves of `weight`, in no rotated basis: what rates are measured on.
    ///
    /// # Errors
    /// [`WeightError`].
    fn residual(&self, weight: Matrix, job: FitJob<'_>) -> Result<Matrix, WeightError>;

    /// Bytes that a worker holds for a weight of `shape`, the weight itself and error feedback apart.
    fn peak_bytes(&self, shape: Shape) -> u64;
}

/// What a [`LowRankFitter`] is to do with one weight.
#[derive(Debug)]
pub struct FitJob<'a> {
    /// The codec of what the low-rank part leaves.
    pub codec: &'a CodecSpec,
    /// Rank and storage of the factors.
    pub low_rank: LowRankSpec,
    /// Second moments of the inputs, if the weight is calibrated.
    pub moments: Option<Moments>,
    /// Whether errors are fed back through the moments.
    pub feedback: bool,
    /// Everything else about the codes.
    pub options: EncodeOptions,
}

/// The plan for one tensor.
#[derive(Debug, Clone)]
pub struct PlanItem {
    /// The tensor.
    pub name: String,
    /// The index of its shard.
    pub shard: usize,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Bytes in the source.
    pub source_bytes: u64,
    /// Bytes in the archive, headers apart.
    pub stored_bytes: u64,
    /// What is done with it.
    pub decision: Decision,
}

impl PlanItem {
    /// The number of values.
    pub fn num_weights(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }
}

/// The layout of one file of the archive.
#[derive(Debug, Clone)]
pub(super) struct ShardPlan {
    pub(super) file_name: String,
    pub(super) tensors: Vec<(TensorPlan, usize)>,
    /// Bytes that the header may take.
    pub(super) header_len: usize,
    /// `__metadata__` of the source.
    pub(super) metadata: BTreeMap<String, String>,
}

impl ShardPlan {
    fn num_bytes(&self) -> u64 {
        let data: usize = self.tensors.iter().map(|(tensor, _)| tensor.num_bytes()).sum();
        (data_start(self.header_len) + data) as u64
    }
}

impl Plan {
    /// Decides on every tensor of `checkpoint`.
    ///
    /// # Errors
    /// [`ArchiveError`] if the checkpoint is an archive already, a rule asks for a codec that cannot be built, or a
    /// stored name would be taken twice.
    pub fn new(checkpoint: &Checkpoint, recipe: &CompiledRecipe) -> Result<Self, ArchiveError> {
        if let Some(shard) = checkpoint.shards().iter().find(|shard| shard.metadata.contains_key(MANIFEST_KEY)) {
            return Err(ArchiveError::AlreadyAnArchive { path: shard.path.clone() });
        }
        let items = checkpoint.tensors().iter().map(|(name, info)| plan_item(name, info, recipe));
        let items = items.collect::<Result<Vec<_>, _>>()?;
        let shards = checkpoint.shards().iter().enumerate().map(|(index, shard)| {
            let items: Vec<&PlanItem> = items.iter().filter(|item| item.shard == index).collect();
            plan_shard(checkpoint, &shard.file_name, shard.metadata.clone(), &items)
        });
        let shards = shards.collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        for (shard, plan) in checkpoint.shards().iter().zip(&shards) {
            if let Some((tensor, _)) = plan.tensors.iter().find(|(tensor, _)| !names.insert(tensor.name.clone())) {
                let message = format!("tensor \"{}\" has the name of a part of a packed weight", tensor.name);
                return Err(ArchiveError::Manifest { path: shard.path.clone(), message });
            }
        }
        Ok(Self { items, shards, feedback: recipe.feedback(), calibration: None, low_rank: None })
    }

    /// The same plan with error feedback through `calibration`, for the weights that it knows.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] if it belongs to another model.
    pub fn with_calibration(
        mut self,
        checkpoint: &Checkpoint,
        calibration: Arc<Calibration>,
    ) -> Result<Self, ArchiveError> {
        calibration.check(checkpoint)?;
        self.calibration = Some(calibration);
        Ok(self)
    }

    /// The same plan with `fitter` for the weights that get a low-rank part.
    pub fn with_low_rank_fitter(mut self, fitter: Arc<dyn LowRankFitter>) -> Self {
        self.low_rank = Some(fitter);
        self
    }

    /// Who finds low-rank parts, if there is somebody.
    pub(super) fn low_rank_fitter(&self) -> Result<&dyn LowRankFitter, ConfigError> {
        self.low_rank.as_deref().ok_or(ConfigError::NoLowRankFitter)
    }

    /// The calibration, if there is one.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_deref()
    }

    /// How error feedback is done.
    pub const fn feedback(&self) -> FeedbackOptions {
        self.feedback
    }

    /// Whether the weight of `item` is coded with error feedback.
    pub fn has_feedback(&self, item: &PlanItem) -> bool {
        let asked = matches!(item.decision, Decision::Compress { feedback: true, .. });
        asked && self.calibration().is_some_and(|calibration| calibration.group(&item.name).is_some())
    }

    /// The weight of `item`, in f32.
    ///
    /// # Errors
    /// [`ArchiveError`] if it is no matrix of floats.
    pub fn weight(&self, checkpoint: &Checkpoint, item: &PlanItem) -> Result<Matrix, ArchiveError> {
        let (shape, _) = matrix_of(checkpoint, item)?;
        let matrix = Matrix::new(shape, checkpoint.to_f32(&item.name)?);
        matrix.map_err(|error| self.weight_error(checkpoint, item, error))
    }

    /// An error of the weight of `item` with its file and name.
    pub fn weight_error(
        &self,
        checkpoint: &Checkpoint,
        item: &PlanItem,
        source: impl Into<WeightError>,
    ) -> ArchiveError {
        weight_error(checkpoint, item)(source)
    }

    /// Compresses `weight`, all rows of `item` or, if it has no low-rank part, some of them, as planned.
    ///
    /// # Panics
    /// If the item is kept.
    pub(super) fn encode(
        &self,
        checkpoint: &Checkpoint,
        item: &PlanItem,
        weight: Matrix,
    ) -> Result<(PackedWeight, Outcome), ArchiveError> {
        let Decision::Compress { codec, rotation, protect, .. } = &item.decision else {
            panic!("{} is kept", item.name)
        };
        let packed = match self.fit_job(item)? {
            Some(job) => self.low_rank_fitter()?.compress(weight, job),
            None => {
                let moments = match &self.calibration {
                    Some(calibration) if self.has_feedback(item) => calibration.moments(&item.name)?,
                    _ => None,
                };
                let options = EncodeOptions { rotation: *rotation, protect: *protect, feedback: self.feedback };
                compress(weight, codec, moments, options)
            }
        };
        packed.map_err(weight_error(checkpoint, item))
    }

    /// What there is to do for the low-rank part of `item`, if it gets one.
    pub(super) fn fit_job<'a>(&self, item: &'a PlanItem) -> Result<Option<FitJob<'a>>, ArchiveError> {
        let Decision::Compress { codec, rotation, protect, low_rank: Some(low_rank), feedback } = &item.decision else {
            return Ok(None);
        };
        // A low-rank part makes use of the moments also where errors are not fed back.
        let moments = match &self.calibration {
            Some(calibration) => calibration.moments(&item.name)?,
            None => None,
        };
        let options = EncodeOptions { rotation: *rotation, protect: *protect, feedback: self.feedback };
        Ok(Some(FitJob { codec, low_rank: *low_rank, moments, feedback: *feedback, options }))
    }

    /// The tensors in the order of their names.
    pub fn items(&self) -> &[PlanItem] {
        &self.items
    }

    pub(super) fn shards(&self) -> &[ShardPlan] {
        &self.shards
    }

    /// Bytes of the archive's weight files, headers and all.
    pub fn stored_bytes(&self) -> u64 {
        self.shards.iter().map(ShardPlan::num_bytes).sum()
    }

    /// The stored tensors by name, each with its file.
    pub(super) fn weight_map(&self) -> BTreeMap<String, String> {
        let of_shard = |shard: &ShardPlan| {
            let file_name = shard.file_name.clone();
            shard.tensors.iter().map(|(tensor, _)| (tensor.name.clone(), file_name.clone())).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of_shard).collect()
    }

    /// Bytes of all stored tensors, headers apart.
    pub(super) fn tensor_bytes(&self) -> u64 {
        self.items.iter().map(|item| item.stored_bytes).sum()
    }

    /// An upper estimate of the memory in bytes that compressing takes beyond the mapped input, with `threads` workers:
    /// for each, one f32 copy of a tensor, its codes, two column blocks and the codec's tables, and what a low-rank part's
    /// fitter says that it holds.
    pub fn peak_memory(&self, threads: usize) -> u64 {
        let mut costs: Vec<u64> = self
            .items
            .iter()
            .map(|item| match &item.decision {
                Decision::Keep(_) => 0,
                Decision::Compress { codec, protect, low_rank, .. } => {
                    let (width, search) = match (codec.build(), Shape::try_from([item.shape[0], item.shape[1]])) {
                        (Ok(codec), Ok(shape)) => (codec.block_width(shape), codec.search_bytes(shape)),
                        _ => (0, 0),
                    };
                    let blocks = 8 * (item.shape[0] * width) as u64;
                    let feedback = match Shape::try_from([item.shape[0], item.shape[1]]) {
                        Ok(shape) if self.has_feedback(item) => Feedback::peak_bytes(shape),
                        _ => 0,
                    };
                    // With protected columns, errors are measured on what was packed.
                    let copies = if *protect > 0 { 3 } else { 1 };
                    let fit = match (Shape::try_from([item.shape[0], item.shape[1]]), &self.low_rank) {
                        (Ok(shape), Some(fitter)) if low_rank.is_some() => fitter.peak_bytes(shape),
                        _ => 0,
                    };
                    4 * copies * item.num_weights()
                        + fit
                        + item.stored_bytes
                        + blocks
                        + search as u64
                        + feedback
                        + OTHER_BYTES
                }
            })
            .collect();
        costs.sort_unstable_by(|a, b| b.cmp(a));
        costs.into_iter().take(threads).sum()
    }
}

/// What a worker holds beside the weight and the codec's own: its rotation, sums of rows, the manifest's strings.
const OTHER_BYTES: u64 = 4 << 20;

/// Readers of safetensors refuse longer headers.
const MAX_HEADER: usize = 100_000_000;

/// The streams of a packed tensor, as tensors of a safetensors file.
pub(super) fn stream_plans(name: &str, streams: &[StreamSpec]) -> Vec<TensorPlan> {
    let plan = |stream: &StreamSpec| TensorPlan {
        name: stream_name(name, stream),
        dtype: safetensors_dtype(stream.dtype),
        shape: stream.shape.clone(),
    };
    streams.iter().map(plan).collect()
}

fn plan_item(name: &str, info: &TensorInfo, recipe: &CompiledRecipe) -> Result<PlanItem, ArchiveError> {
    let decision = recipe.decide(name, &info.shape, FloatType::of(info.dtype).is_some());
    let decision = decision.map_err(|source| ArchiveError::Tensor { tensor: name.to_owned(), source })?;
    // More weights than any codec takes: nothing that a real checkpoint holds.
    let shape = info.shape.first().zip(info.shape.get(1)).and_then(|(&m, &n)| Shape::new(m, n).ok());
    let (decision, stored_bytes) = match (decision, shape) {
        (decision @ Decision::Compress { .. }, Some(shape)) => {
            let Decision::Compress { codec, protect, low_rank, .. } = &decision else { unreachable!("matched above") };
            let streams = stored_streams(codec, shape, *protect, *low_rank)?;
            let bytes = streams.iter().map(|stream| stream.num_bytes() as u64).sum();
            (decision, bytes)
        }
        (Decision::Compress { .. }, None) => (Decision::Keep(KeepReason::NotAMatrix), info.num_bytes()),
        (keep, _) => (keep, info.num_bytes()),
    };
    Ok(PlanItem {
        name: name.to_owned(),
        shard: info.shard,
        shape: info.shape.clone(),
        source_bytes: info.num_bytes(),
        stored_bytes,
        decision,
    })
}

fn plan_shard(
    checkpoint: &Checkpoint,
    file_name: &str,
    metadata: BTreeMap<String, String>,
    items: &[&PlanItem],
) -> Result<ShardPlan, ArchiveError> {
    let mut tensors = Vec::new();
    let mut widest = Manifest::new();
    for item in items {
        let info = checkpoint.info(&item.name)?;
        match &item.decision {
            Decision::Keep(_) => {
                tensors.push(TensorPlan { name: item.name.clone(), dtype: info.dtype, shape: info.shape.clone() });
                widest.kept.insert(item.name.clone(), "0".repeat(64));
            }
            Decision::Compress { codec, rotation, protect, low_rank, .. } => {
                let (shape, dtype) = matrix_of(checkpoint, item)?;
                tensors.extend(stream_plans(&item.name, &stored_streams(codec, shape, *protect, *low_rank)?));
                let entry = PackedEntry {
                    shape,
                    dtype,
                    codec: codec.clone(),
                    rotation: *rotation,
                    // The values of the longest text that these fields can have.
                    exponent: -126,
                    protected: *protect,
                    low_rank: *low_rank,
                    relative_mse: 2.225_073_858_507_201_4e-308,
                    output_loss: Some(2.225_073_858_507_201_4e-308),
                    source_blake3: "0".repeat(64),
                    stored_blake3: "0".repeat(64),
                };
                widest.tensors.insert(item.name.clone(), entry);
            }
        }
    }
    let tensors = in_file_order(tensors);
    let header_len = header(&tensors, &with_manifest(&metadata, &widest)).len();
    if header_len + 8 > MAX_HEADER {
        let message =
            format!("{file_name} would have a header of {header_len} bytes, of which readers take {MAX_HEADER}");
        return Err(ArchiveError::Manifest { path: checkpoint.root().to_owned(), message });
    }
    Ok(ShardPlan { file_name: file_name.to_owned(), tensors, header_len, metadata })
}

/// Names the tensor of `item` in an error of its weight.
pub(super) fn weight_error<E: Into<WeightError>>(
    checkpoint: &Checkpoint,
    item: &PlanItem,
) -> impl Fn(E) -> ArchiveError {
    let path = checkpoint.info(&item.name).map_or(checkpoint.root(), |info| checkpoint.path_of(info)).to_owned();
    let tensor = item.name.clone();
    move |source| ArchiveError::Weight { path: path.clone(), tensor: tensor.clone(), source: Box::new(source.into()) }
}

/// The shape and the float type of a tensor that is compressed.
pub(super) fn matrix_of(checkpoint: &Checkpoint, item: &PlanItem) -> Result<(Shape, FloatType), ArchiveError> {
    let info = checkpoint.info(&item.name)?;
    let not_float = || ArchiveError::NotFloat {
        path: checkpoint.path_of(info).to_owned(),
        tensor: item.name.clone(),
        dtype: info.dtype.to_string(),
    };
    let float = FloatType::of(info.dtype).ok_or_else(not_float)?;
    Ok((Shape::new(info.shape[0], info.shape[1]).map_err(weight_error(checkpoint, item))?, float))
}

/// `__metadata__` of a shard of the archive.
pub(super) fn with_manifest(metadata: &BTreeMap<String, String>, manifest: &Manifest) -> BTreeMap<String, String> {
    let mut metadata = metadata.clone();
    metadata.extend(manifest.to_metadata());
    metadata
}
