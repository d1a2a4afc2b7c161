//! Calibration: the second moments of what each layer reads, collected from a model's own forward passes.
//!
//! ```text
//!  batches ──▶ model.forward ──▶ Projection, PIXELLinear ──▶ Σ w·x·xᵀ on the device ──▶ f64 sums ──▶ file
//! ```
//!
//! The layers of this crate ([`Projection`](crate::Projection), [`PIXELLinear`](crate::PIXELLinear) and what is built
//! of them) report what they read to a collector that runs on their thread; nothing has to be put into the model, and a
//! forward pass without a collector only asks whether there is one. Burn's own `Linear` cannot be listened to: a
//! parameter can be hooked ([`replace_linear_layers`](crate::replace_linear_layers) does), but it never meets the
//! input, and Burn has no hooks on modules. A model of one's own is calibrated by giving its `Linear` fields the type
//! `Projection`, which holds the same layer, forwards the same, and is made by `linear.into()`.
//!
//! Layers that read the very same tensor share one group, which is found out by comparing what they read in the first
//! batches, until each has read something.
//! Memory is bounded: as many groups are collected at a time as [`CalibrationOptions::memory_bytes`] holds, at least
//! one, and the batches are run once for each such pass.
//!
//! # Example
//! ```
//! # #[cfg(feature = "flex")] {
//! use burn::module::Module;
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::{Device, Distribution, Tensor};
//! use pixel_nn::Projection;
//! use pixel_nn::calibration::{CalibrationOptions, calibrate, weight_paths};
//!
//! #[derive(Module, Debug)]
//! struct Mlp {
//!     up: Projection,
//!     down: Projection,
//! }
//!
//! let device = Device::flex();
//! let linear = |m, n| Projection::from(LinearConfig::new(m, n).init(&device));
//! let model = Mlp { up: linear(16, 32), down: linear(32, 16) };
//! let batches: Vec<_> = (0..4).map(|_| Tensor::<2>::random([64, 16], Distribution::Default, &device)).collect();
//! let dir = tempfile::tempdir()?;
//! let output = dir.path().join("stats.safetensors");
//! let description = calibrate(
//!     &weight_paths(&model),
//!     &batches,
//!     |batch| {
//!         model.down.forward(model.up.forward(batch.clone()));
//!         None
//!     },
//!     &CalibrationOptions::new(),
//!     &output,
//!     &mut |_| {},
//! )?;
//! assert_eq!(description.groups["up.weight"].tokens, 256);
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod recorder;
mod sums;

pub(crate) use recorder::{is_listening, observe, tap};
pub use sums::{InputMoments, InputSums};

use crate::error::LayerError;
use crate::trail::{Place, Trail};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Int, Tensor};
use pixel_core::archive::ArchiveError;
use pixel_core::archive::calibration::{Accumulator, CalibrationWriter, Description, Group, Source, Weighting};
use recorder::{Fingerprint, Recorder, Task};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// How a model is calibrated.
#[derive(Debug, Clone)]
pub struct CalibrationOptions {
    /// How much each token counts. Default: the same.
    pub weighting: Weighting,
    /// Bytes of sums held at a time; what does not fit is collected in a further pass. Default: 2 GiB.
    pub memory_bytes: u64,
    /// Whether a file that is there already is replaced. Default: no.
    pub overwrite: bool,
    /// The texts, for the file's description. Default: none.
    pub sources: Vec<Source>,
}

impl CalibrationOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self { weighting: Weighting::Uniform, memory_bytes: 2 << 30, overwrite: false, sources: Vec::new() }
    }
}

impl Default for CalibrationOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// How far a calibration has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalibrationProgress {
    /// The pass, from 1 on.
    pub pass: usize,
    /// How many passes there are.
    pub passes: usize,
    /// Batches of this pass that are done.
    pub batch: usize,
    /// How many batches there are.
    pub batches: usize,
}

/// A calibration that cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrationError {
    /// The file cannot be written.
    #[error(transparent)]
    Archive(Box<ArchiveError>),
    /// A layer's inputs cannot be read from the device.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// There is nothing to run.
    #[error("no batch to calibrate with")]
    NoBatch,
    /// None of the weights was used.
    #[error(
        "none of the {weights} weights read an input: the model runs no Projection, PIXELLinear or layer made of them"
    )]
    NothingSeen {
        /// How many weights were asked for.
        weights: usize,
    },
    /// Gradients are asked for, and the forward pass gives nothing to take them of.
    #[error(
        "gradient weighting needs the forward pass to return what gradients are taken of, batch {batch} returned none"
    )]
    NoLoss {
        /// The batch, from 0 on.
        batch: usize,
    },
    /// A layer has no gradient.
    #[error(
        "weight \"{weight}\": its output has no gradient; call `train()` on the model, and return a scalar that \
         depends on it"
    )]
    NoGradient {
        /// The weight.
        weight: String,
    },
    /// This build has no gradients.
    #[error("gradient weighting needs the cargo feature `autodiff`")]
    WithoutAutodiff,
}

impl From<ArchiveError> for CalibrationError {
    fn from(error: ArchiveError) -> Self {
        Self::Archive(Box::new(error))
    }
}

/// The weights of a module that can be calibrated, by the path of their fields: that of `Projection`s and
/// `PIXELLinear`s ends in `weight`, without the variant of the projection.
pub fn weight_paths<M: Module>(model: &M) -> BTreeMap<ParamId, String> {
    let mut paths = Paths::default();
    model.visit(&mut paths);
    paths.found
}

#[derive(Default)]
struct Paths {
    trail: Trail,
    found: BTreeMap<ParamId, String>,
}

impl ModuleVisitor for Paths {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.trail.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.trail.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Place::Tensor { name, is_linear: true } = self.trail.place()
            && D == 2
        {
            self.found.insert(param.id, name);
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        // What is attached to a dense parameter is known by that.
        if let Place::Part { weight, part, is_attached: false } = self.trail.place()
            && part.starts_with("codes.")
        {
            self.found.insert(param.id, weight);
        }
    }
}

/// Runs `forward` on every batch, once a pass, and writes what the layers of `weights` read to `output`. The names of
/// `weights` are those of the tensors in the checkpoint that will be compressed; [`weight_paths`] gives a module's own.
///
/// Every vector of the last axis of a layer's input is a token: do not pad, or group texts of one length.
///
/// Under [`Weighting::Gradient`], `forward` returns the scalar whose gradients in the layers' outputs weigh the tokens,
/// such as the sum of the log likelihoods of tokens drawn from the model's own predictions, for which `½·tr(E·H·Eᵀ)`
/// estimates the Kullback–Leibler divergence a token; the model is in training mode. Otherwise what it returns is
/// dropped.
///
/// # Errors
/// [`CalibrationError`].
///
/// # Sources
/// Weights by the gradient are the diagonal of the Fisher information, as in Kim et al., *SqueezeLLM* (2024) and
/// *GuidedQuant* (2025), averaged over the outputs of a layer.
pub fn calibrate<B>(
    weights: &BTreeMap<ParamId, String>,
    batches: &[B],
    mut forward: impl FnMut(&B) -> Option<Tensor<1>>,
    options: &CalibrationOptions,
    output: impl AsRef<Path>,
    progress: &mut dyn FnMut(CalibrationProgress),
) -> Result<Description, CalibrationError> {
    if batches.is_empty() {
        return Err(CalibrationError::NoBatch);
    }
    let groups = survey(weights, batches, &mut forward, options.weighting)?;
    let mut description = Description::new(options.weighting, options.sources.clone());
    for group in &groups {
        let weights: Vec<String> = group.names(weights).into_iter().collect();
        description.groups.insert(weights[0].clone(), Group { d_input: group.d_input, tokens: 0, weights });
    }
    let mut writer = CalibrationWriter::create(output, description, options.overwrite)?;
    let passes = passes(&groups, options.memory_bytes);
    for (pass, groups) in passes.iter().enumerate() {
        let sums = collect(weights, groups, batches, &mut forward, options.weighting, &mut |batch| {
            progress(CalibrationProgress { pass: pass + 1, passes: passes.len(), batch, batches: batches.len() });
        })?;
        for group in groups.iter() {
            let name = group.members.iter().map(|id| &weights[id]).min().expect("a group has members");
            writer.write(name, &sums[&group.members[0]])?;
        }
    }
    Ok(writer.finish()?)
}

/// [`calibrate`] without a file: all sums are held at once, `4·d_input²` bytes for each input that layers share (under
/// [`Weighting::Gradient`], for each layer). They go to
/// [`ReplaceConfig::with_calibration`](crate::ReplaceConfig::with_calibration).
///
/// # Errors
/// As [`calibrate`].
pub fn calibrate_in_memory<B>(
    weights: &BTreeMap<ParamId, String>,
    batches: &[B],
    mut forward: impl FnMut(&B) -> Option<Tensor<1>>,
    weighting: Weighting,
    progress: &mut dyn FnMut(CalibrationProgress),
) -> Result<InputSums, CalibrationError> {
    if batches.is_empty() {
        return Err(CalibrationError::NoBatch);
    }
    let groups = survey(weights, batches, &mut forward, weighting)?;
    let mut sums = collect(weights, &groups, batches, &mut forward, weighting, &mut |batch| {
        progress(CalibrationProgress { pass: 1, passes: 1, batch, batches: batches.len() });
    })?;
    let mut found = InputSums::default();
    for group in &groups {
        found.add(group.names(weights), sums.remove(&group.members[0]).expect("sums of every group"));
    }
    Ok(found)
}

/// Weights that read the same inputs.
struct InputGroup {
    members: Vec<ParamId>,
    d_input: usize,
}

impl InputGroup {
    fn names(&self, weights: &BTreeMap<ParamId, String>) -> BTreeSet<String> {
        self.members.iter().map(|id| weights[id].clone()).collect()
    }
}

/// Finds out which weights read, how wide, and which of them the same: runs batches until all have been seen.
fn survey<B>(
    weights: &BTreeMap<ParamId, String>,
    batches: &[B],
    forward: &mut impl FnMut(&B) -> Option<Tensor<1>>,
    weighting: Weighting,
) -> Result<Vec<InputGroup>, CalibrationError> {
    // What each weight read, batch by batch.
    let mut fingerprints: HashMap<ParamId, Vec<(usize, Fingerprint)>> = HashMap::new();
    let mut order = Vec::new();
    for (index, batch) in batches.iter().enumerate() {
        let recorder = Recorder::run(Task::Survey, weights.keys().copied(), || drop(forward(batch)));
        for (id, fingerprint) in recorder.finish_survey()? {
            let found = fingerprints.entry(id).or_default();
            if found.is_empty() {
                order.push(id);
            }
            found.push((index, fingerprint));
        }
        if order.len() == weights.len() {
            break;
        }
    }
    if order.is_empty() {
        return Err(CalibrationError::NothingSeen { weights: weights.len() });
    }
    let mut groups: Vec<InputGroup> = Vec::new();
    for id in order {
        let found = &fingerprints[&id];
        let same =
            |group: &&mut InputGroup| weighting == Weighting::Uniform && fingerprints[&group.members[0]] == *found;
        match groups.iter_mut().find(same) {
            Some(group) => group.members.push(id),
            None => groups.push(InputGroup { members: vec![id], d_input: found[0].1.d_input }),
        }
    }
    Ok(groups)
}

/// The groups, in as few runs as their sums fit into `budget` bytes.
fn passes(groups: &[InputGroup], budget: u64) -> Vec<&[InputGroup]> {
    let mut passes = Vec::new();
    let mut start = 0;
    while start < groups.len() {
        let mut used = Accumulator::num_bytes(groups[start].d_input);
        let mut end = start + 1;
        while end < groups.len() && used + Accumulator::num_bytes(groups[end].d_input) <= budget {
            used += Accumulator::num_bytes(groups[end].d_input);
            end += 1;
        }
        passes.push(&groups[start..end]);
        start = end;
    }
    passes
}

/// The sums over all batches of what the first weight of each group reads.
fn collect<B>(
    weights: &BTreeMap<ParamId, String>,
    groups: &[InputGroup],
    batches: &[B],
    forward: &mut impl FnMut(&B) -> Option<Tensor<1>>,
    weighting: Weighting,
    progress: &mut dyn FnMut(usize),
) -> Result<BTreeMap<ParamId, Accumulator>, CalibrationError> {
    let mut sums: BTreeMap<ParamId, Accumulator> =
        groups.iter().map(|group| (group.members[0], Accumulator::new(group.d_input))).collect();
    for (index, batch) in batches.iter().enumerate() {
        let wanted = || groups.iter().map(|group| group.members[0]);
        sums = match weighting {
            Weighting::Uniform => {
                Recorder::run(Task::Moments(sums), wanted(), || drop(forward(batch))).finish_moments()?
            }
            Weighting::Gradient => {
                let mut loss = None;
                let recorder = Recorder::run(Task::Inputs, wanted(), || loss = forward(batch));
                add_weighted(recorder, loss.ok_or(CalibrationError::NoLoss { batch: index })?, weights, sums)?
            }
        };
        progress(index + 1);
    }
    Ok(sums)
}

/// Adds the recorded inputs, each by the power of its gradient.
#[cfg(feature = "autodiff")]
fn add_weighted(
    recorder: Recorder,
    loss: Tensor<1>,
    weights: &BTreeMap<ParamId, String>,
    mut sums: BTreeMap<ParamId, Accumulator>,
) -> Result<BTreeMap<ParamId, Accumulator>, CalibrationError> {
    let inputs = recorder.finish_inputs()?;
    let name = |id: &ParamId| CalibrationError::NoGradient { weight: weights[id].clone() };
    if let Some(seen) = inputs.iter().find(|seen| seen.tap.is_none() || !loss.is_tracked()) {
        return Err(name(&seen.weight));
    }
    if inputs.is_empty() {
        // None of this pass's weights reads this batch, and the loss may depend on nothing.
        return Ok(sums);
    }
    let mut gradients = loss.backward();
    for seen in inputs {
        let gradient = seen.tap.and_then(|tap| tap.grad_remove(&mut gradients));
        let gradient = gradient.ok_or_else(|| name(&seen.weight))?;
        let weights = gradient.square().mean_dim(1);
        let sums = sums.get_mut(&seen.weight).expect("only weights of this pass are recorded");
        recorder::add_moments(sums, seen.input, Some(weights))?;
    }
    Ok(sums)
}

#[cfg(not(feature = "autodiff"))]
fn add_weighted(
    _: Recorder,
    _: Tensor<1>,
    _: &BTreeMap<ParamId, String>,
    _: BTreeMap<ParamId, Accumulator>,
) -> Result<BTreeMap<ParamId, Accumulator>, CalibrationError> {
    Err(CalibrationError::WithoutAutodiff)
}
