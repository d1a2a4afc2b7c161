//! What will be done with each tensor of a checkpoint, and how many bytes that will take, to the byte.

use super::decision::{CompiledRecipe, Decision, Omission};
use super::remarks::{Remark, remarks};
use super::roles::Role;
use crate::archive::calibration::Calibration;
use crate::archive::{
    ArchiveError, ArchivePlan, ArchiveTensor, Checkpoint, FloatType, MANIFEST_KEY, ManifestError, TensorInfo,
    archive_name,
};
use crate::encode::{CodingSpec, Encoder, Moments, Outcome, PreparedInputs};
use crate::error::{ConfigError, WeightError};
use crate::math::Exponent;
use crate::matrix::{Matrix, Shape};
use crate::packed::PackedWeight;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The plan for a checkpoint.
#[derive(Debug)]
pub struct Plan {
    items: Vec<PlanItem>,
    files: Vec<ArchivePlan>,
    remarks: Vec<Remark>,
    calibration: Option<Arc<Calibration>>,
    low_rank: Option<Arc<dyn LowRankFitter>>,
}

/// Finds the low-rank parts of a model's weights; `pixel-experimental` has one. Requests name a low-rank part;
/// `moments` are those of the weight's inputs, if it is calibrated, also where the request has no feedback.
pub trait LowRankFitter: std::fmt::Debug + Send + Sync {
    /// Compresses `weight` into codes and a low-rank part, as `spec` says.
    ///
    /// # Errors
    /// [`WeightError`].
    fn compress(
        &self,
        weight: Matrix,
        spec: &CodingSpec,
        moments: Option<Moments>,
    ) -> Result<(PackedWeight, Outcome), WeightError>;

    /// The residual of `weight` after its low-rank part, not rotated: rates are measured on it.
    ///
    /// # Errors
    /// [`WeightError`].
    fn residual(&self, weight: Matrix, spec: &CodingSpec, moments: Option<Moments>) -> Result<Matrix, WeightError>;

    /// Bytes that a worker holds for a weight of `shape`, without the weight itself and error feedback.
    fn peak_bytes(&self, shape: Shape) -> u64;
}

/// The plan for one tensor.
#[derive(Debug, Clone)]
pub struct PlanItem {
    /// The tensor.
    pub name: String,
    /// The index of its shard.
    pub shard: usize,
    /// What it is for, by its name.
    pub role: Role,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Bytes in the source.
    pub source_bytes: u64,
    /// Bytes in the archive, without headers.
    pub stored_bytes: u64,
    /// What is done with it.
    pub decision: Decision,
}

impl PlanItem {
    /// The number of values.
    pub fn num_weights(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }

    /// How it is coded and its shape as a matrix, if it is compressed.
    pub fn coding(&self) -> Option<(&CodingSpec, Shape)> {
        let shape = Shape::try_from(<[usize; 2]>::try_from(&self.shape[..]).ok()?).ok()?;
        self.decision.coding().map(|spec| (spec, shape))
    }
}

impl Plan {
    /// Decides on every tensor of `checkpoint`.
    ///
    /// # Errors
    /// [`ArchiveError`] if the checkpoint is an archive already or quantised otherwise, a rule asks for a codec that
    /// cannot be built, or a stored name would be taken twice.
    pub fn new(checkpoint: &Checkpoint, recipe: &CompiledRecipe) -> Result<Self, ArchiveError> {
        if let Some(shard) = checkpoint.shards().iter().find(|shard| shard.metadata.contains_key(MANIFEST_KEY)) {
            return Err(ArchiveError::AlreadyAnArchive { path: shard.path.clone() });
        }
        checkpoint.check_not_quantised()?;
        checkpoint.check_layout()?;
        let (mut items, mut omitted) = (Vec::new(), Vec::new());
        for (name, info) in checkpoint.tensors() {
            let (item, parts) = plan_item(name, info, recipe)?;
            omitted.extend(parts.into_iter().map(|part| (part, name.clone())));
            items.push(item);
        }
        let remarks = remarks(recipe, &items, omitted);
        let files = checkpoint.shards().iter().enumerate().map(|(index, shard)| {
            let tensors = items.iter().filter(|item| item.shard == index).map(|item| plan_tensor(checkpoint, item));
            let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
            ArchivePlan::new(archive_name(&shard.file_name), shard.metadata.clone(), tensors)
        });
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        for (shard, plan) in checkpoint.shards().iter().zip(&files) {
            if let Some(taken) = plan.file.tensors().find(|tensor| !names.insert(tensor.name.clone())) {
                let source = ManifestError::NameTaken { tensor: taken.name.clone() };
                return Err(ArchiveError::manifest(&shard.path, source));
            }
        }
        Ok(Self { items, files, remarks, calibration: None, low_rank: None })
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

    /// The fitter of low-rank parts.
    pub(crate) fn low_rank_fitter(&self) -> Result<&dyn LowRankFitter, ConfigError> {
        self.low_rank.as_deref().ok_or(ConfigError::NoLowRankFitter)
    }

    /// What the plan does otherwise than the recipe may have meant.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// The calibration, if there is one.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.calibration.as_deref()
    }

    /// Whether the weight of `item` is coded with error feedback.
    pub fn has_feedback(&self, item: &PlanItem) -> bool {
        let asked = item.decision.coding().is_some_and(|spec| spec.feedback.is_some());
        asked && self.calibration().is_some_and(|calibration| calibration.group(&item.name).is_some())
    }

    /// The moments of the inputs of the tensor `name`, if it is calibrated.
    ///
    /// # Errors
    /// As [`Calibration::moments`].
    pub fn moments(&self, name: &str) -> Result<Option<Moments>, ArchiveError> {
        self.calibration().map_or(Ok(None), |calibration| calibration.moments(name))
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

    /// Codes `weight`, the tensor of `item` or some of its rows, as `spec` says: the item's own request, or one like
    /// it.
    pub(crate) fn encode(
        &self,
        checkpoint: &Checkpoint,
        item: &PlanItem,
        spec: &CodingSpec,
        weight: Matrix,
    ) -> Result<(PackedWeight, Outcome), ArchiveError> {
        let packed = match spec.low_rank {
            // A low-rank part makes use of the moments also where errors are not fed back.
            Some(_) => self.low_rank_fitter()?.compress(weight, spec, self.moments(&item.name)?),
            None => {
                let moments = if self.has_feedback(item) { self.moments(&item.name)? } else { None };
                Encoder::new(spec).with_moments(moments).encode(weight)
            }
        };
        packed.map_err(weight_error(checkpoint, item))
    }

    /// The residual of the weight of `item` after its low-rank part; the weight itself if it gets none.
    pub(crate) fn residual(
        &self,
        checkpoint: &Checkpoint,
        item: &PlanItem,
        weight: Matrix,
    ) -> Result<Matrix, ArchiveError> {
        match item.decision.coding() {
            Some(spec) if spec.low_rank.is_some() => {
                let left = self.low_rank_fitter()?.residual(weight, spec, self.moments(&item.name)?);
                left.map_err(weight_error(checkpoint, item))
            }
            _ => Ok(weight),
        }
    }

    /// The tensors in the order of their names.
    pub fn items(&self) -> &[PlanItem] {
        &self.items
    }

    /// The files of the archive.
    pub(crate) fn files(&self) -> &[ArchivePlan] {
        &self.files
    }

    /// Bytes of the archive's weight files, including headers.
    pub fn stored_bytes(&self) -> u64 {
        self.files.iter().map(|plan| plan.file.num_bytes()).sum()
    }

    /// The stored tensors by name, each with its file.
    pub(crate) fn weight_map(&self) -> BTreeMap<String, String> {
        let of_file = |plan: &ArchivePlan| {
            let name = |tensor: &crate::archive::TensorPlan| (tensor.name.clone(), plan.file.file_name.clone());
            plan.file.tensors().map(name).collect::<Vec<_>>()
        };
        self.files.iter().flat_map(of_file).collect()
    }

    /// Bytes of all stored tensors, without headers.
    pub(crate) fn tensor_bytes(&self) -> u64 {
        self.items.iter().map(|item| item.stored_bytes).sum()
    }

    /// An upper estimate of the memory in bytes that compressing takes beyond the mapped input, with `threads` workers,
    /// or one for each processor if that is 0: for each, one f32 copy of a tensor, its codes, two column blocks and the
    /// codec's tables, and what the fitter of low-rank parts reports. Workers beyond the tensors help with one.
    pub fn peak_memory(&self, threads: usize) -> u64 {
        let mut costs: Vec<(u64, u64)> = self.items.iter().filter_map(|item| self.item_memory(item)).collect();
        costs.sort_unstable_by_key(|&(item, search)| std::cmp::Reverse(item + search));
        let workers = num_workers(threads);
        let search = costs.iter().map(|&(_, search)| search).max().unwrap_or(0);
        let items = costs.iter().take(workers).map(|(item, _)| item).sum::<u64>();
        // Searches stay with a weight until it is coded, whoever helped.
        let searches = if workers > 1 { 2 * workers } else { 1 };
        items + search * searches as u64
    }

    /// What a worker holds for `item`, and what each thread that searches for its codes does; nothing if it is kept.
    fn item_memory(&self, item: &PlanItem) -> Option<(u64, u64)> {
        let (spec, shape) = item.coding()?;
        let (width, search) = match spec.codec.build() {
            Ok(codec) => (codec.block_width(shape), codec.search_bytes(shape)),
            Err(_) => (0, 0),
        };
        let blocks = 8 * (shape.d_output() * width) as u64;
        let feedback = if self.has_feedback(item) { PreparedInputs::peak_bytes(shape, spec.protect) } else { 0 };
        // With protected columns, errors are measured on what was packed.
        let copies = if spec.protect > 0 { 3 } else { 1 };
        let fit = spec.low_rank.and(self.low_rank.as_ref()).map_or(0, |fitter| fitter.peak_bytes(shape));
        let weight = 4 * copies * item.num_weights();
        Some((weight + fit + item.stored_bytes + blocks + feedback + OTHER_BYTES, search as u64))
    }
}

/// What a worker holds in addition to the weight and the codec's own: its rotation, sums of rows, the manifest's
/// strings.
const OTHER_BYTES: u64 = 4 << 20;

/// More threads than any machine at hand has processors; a number far above it is a slip, and the system refuses them.
const MOST_WORKERS: usize = 1024;

/// The number of workers for `threads` requested: one for each processor if it is 0, 1024 at most.
pub fn num_workers(threads: usize) -> usize {
    if threads == 0 { rayon::current_num_threads() } else { threads.min(MOST_WORKERS) }
}

/// The plan for one tensor, and what of the recipe's wishes it is too small for.
fn plan_item(
    name: &str,
    info: &TensorInfo,
    recipe: &CompiledRecipe,
) -> Result<(PlanItem, Vec<Omission>), ArchiveError> {
    let decision = recipe.decide_with_remarks(name, &info.shape, FloatType::of(info.dtype).is_some());
    let (decision, omitted) = decision.map_err(|source| ArchiveError::Tensor { tensor: name.to_owned(), source })?;
    let stored_bytes = match (&decision, info.shape[..].try_into().map(|[m, n]: [usize; 2]| Shape::new(m, n))) {
        (Decision::Compress(spec), Ok(Ok(shape))) => spec.stored_bytes(shape)?,
        _ => info.num_bytes(),
    };
    let item = PlanItem {
        name: name.to_owned(),
        shard: info.shard,
        role: Role::of(name),
        shape: info.shape.clone(),
        source_bytes: info.num_bytes(),
        stored_bytes,
        decision,
    };
    Ok((item, omitted))
}

/// The tensor of `item` as the archive's layout takes it.
fn plan_tensor(checkpoint: &Checkpoint, item: &PlanItem) -> Result<ArchiveTensor, ArchiveError> {
    let (info, name) = (checkpoint.info(&item.name)?, item.name.clone());
    Ok(match &item.decision {
        Decision::Keep(_) => ArchiveTensor::Kept { name, dtype: info.dtype, shape: info.shape.clone() },
        Decision::Compress(spec) => {
            let (shape, dtype) = matrix_of(checkpoint, item)?;
            ArchiveTensor::Packed { name, header: spec.header(shape, Exponent::ZERO), dtype }
        }
    })
}

/// Names the tensor of `item` in an error of its weight.
pub(crate) fn weight_error<E: Into<WeightError>>(
    checkpoint: &Checkpoint,
    item: &PlanItem,
) -> impl Fn(E) -> ArchiveError {
    let path = checkpoint.info(&item.name).map_or(checkpoint.root(), |info| checkpoint.path_of(info)).to_owned();
    let tensor = item.name.clone();
    move |source| ArchiveError::Weight { path: path.clone(), tensor: tensor.clone(), source: Box::new(source.into()) }
}

/// The shape and the float type of a tensor that is compressed.
pub(crate) fn matrix_of(checkpoint: &Checkpoint, item: &PlanItem) -> Result<(Shape, FloatType), ArchiveError> {
    let info = checkpoint.info(&item.name)?;
    let not_float = || ArchiveError::NotFloat {
        path: checkpoint.path_of(info).to_owned(),
        tensor: item.name.clone(),
        dtype: info.dtype,
    };
    let float = FloatType::of(info.dtype).ok_or_else(not_float)?;
    Ok((Shape::new(info.shape[0], info.shape[1]).map_err(weight_error(checkpoint, item))?, float))
}
