//! The way of a model's weights to patterns: what is to be done is planned before any weight is touched, the dense
//! values are taken out and coded on all threads, and the patterns are attached.

use super::config::{ReplaceConfig, Selection};
use super::param::{Axes, PatternParam};
use super::placeholder::{is_frozen, placeholder};
use super::report::{KeptParameter, LayerReport, ReplacementReport, SkipReason};
use super::survey::{Found, LayerKind, survey};
use crate::calibration::weight_paths;
use crate::error::LayerError;
use crate::linear::rotation;
use crate::weight::{PatternWeight, read_floats};
use burn::module::{Module, Param, ParamId, Reparameterizer};
use burn::tensor::{Device, Tensor};
use pixel_core::backend::check_device;
use pixel_core::compressor::Progress;
use pixel_core::{CodecSpec, CodingSpec, Encoder, Matrix, Moments, Outcome, PackedWeight, PatternDictionary};
use rayon::Scope;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Replaces the weights that `config` selects by patterns of their values.
pub(super) fn replace<M: Module>(
    model: M,
    config: &ReplaceConfig,
    progress: &dyn Progress,
) -> Result<(M, ReplacementReport), LayerError> {
    let found = survey(&model);
    let mut plan = Plan::new(config, &found)?;
    let names = names_of(&model, config, &plan, &found)?;
    let done = Coded::default();
    // The walk stays on this thread: a model need not be one that several threads may touch.
    let (model, taken) = rayon::in_place_scope(|scope| {
        let mut take = Take { plan: &mut plan, names: &names, done: &done, progress, scope, taken: Taken::default() };
        let model = model.apply_reparameterization(&mut take);
        (model, take.taken)
    });
    if let Some(error) = taken.error.or(done.error.into_inner().unwrap_or_else(PoisonError::into_inner)) {
        return Err(error);
    }
    let coded = done.weights.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut attach =
        Attach { config, coded, taken: taken.weights, patterns: HashMap::new(), layers: Vec::new(), error: None };
    let model = model.apply_reparameterization(&mut attach);
    match attach.error {
        Some(error) => Err(error),
        None => Ok((model, ReplacementReport { layers: attach.layers, kept: plan.kept(&found) })),
    }
}

/// The names by which the calibration knows the weights to be replaced, by their paths: those of [`weight_paths`], or
/// else the paths themselves.
///
/// # Errors
/// [`LayerError::NotCalibrated`] if it knows none.
fn names_of<M: Module>(
    model: &M,
    config: &ReplaceConfig,
    plan: &Plan<'_>,
    found: &[Found],
) -> Result<HashMap<String, String>, LayerError> {
    let Some(calibration) = &config.calibration else { return Ok(HashMap::new()) };
    let by_id = weight_paths(model);
    let planned = found.iter().filter(|weight| plan.weights.contains_key(&weight.path));
    let names = planned.filter_map(|weight| {
        let mut candidates = by_id.get(&weight.id).into_iter().chain([&weight.path]);
        Some((weight.path.clone(), candidates.find(|name| calibration.knows(name))?.clone()))
    });
    let names: HashMap<String, String> = names.collect();
    match names.is_empty() && !plan.weights.is_empty() {
        true => Err(LayerError::NotCalibrated { weights: plan.weights.len() }),
        false => Ok(names),
    }
}

/// Gives the weights that `config` selects random patterns, which a record will overwrite. No value is read.
pub(super) fn skeleton<M: Module>(model: M, config: &ReplaceConfig) -> Result<M, LayerError> {
    let mut randomize = Randomize { plan: Plan::new(config, &survey(&model))?, error: None };
    let model = model.apply_reparameterization(&mut randomize);
    randomize.error.map_or(Ok(model), Err)
}

/// What is to be done with every weight, decided before any is touched.
struct Plan<'a> {
    config: &'a ReplaceConfig,
    /// By path; those that a walk has met are no longer in it.
    weights: HashMap<String, Planned>,
    kept: Vec<KeptParameter>,
}

/// A weight that is to be replaced.
struct Planned {
    codec: CodecSpec,
    /// Whether its patterns are those of the caller's dictionary.
    over_dictionary: bool,
    axes: Axes,
    /// Other parameters have the same id.
    shared: bool,
}

impl<'a> Plan<'a> {
    fn new(config: &'a ReplaceConfig, found: &[Found]) -> Result<Self, LayerError> {
        let selection: Selection<'_> = config.compile()?;
        selection.check_used(found)?;
        let mut owners: HashMap<ParamId, usize> = HashMap::new();
        found.iter().for_each(|weight| *owners.entry(weight.id).or_default() += 1);
        let mut plan = Self { config, weights: HashMap::new(), kept: Vec::new() };
        for weight in found {
            let name = weight.path.clone();
            let axes = Axes { dims: weight.dims.clone(), transposed: weight.kind == LayerKind::Linear };
            match selection.decide(weight) {
                Err(reason) => plan.kept.push(KeptParameter { name, shape: axes.dims, reason }),
                Ok((codec, over_dictionary)) => {
                    let checked = check_device(&weight.device).map_err(LayerError::from).and(axes.matrix());
                    checked.map_err(|error| error.at(&name))?;
                    let shared = owners[&weight.id] > 1;
                    plan.weights.insert(name, Planned { codec, over_dictionary, axes, shared });
                }
            }
        }
        if plan.weights.is_empty() && !config.allow_nothing {
            return Err(LayerError::NothingToReplace { kept: plan.kept });
        }
        Ok(plan)
    }

    /// What is to be done with a parameter, if a walk meets it for the first time and can do it.
    fn next<const D: usize>(&mut self, path: &str, param: &Param<Tensor<D>>) -> Option<Planned> {
        let planned = self.weights.remove(path)?;
        if !param.dtype().is_float() {
            let (name, shape) = (path.into(), planned.axes.dims);
            self.kept.push(KeptParameter { name, shape, reason: SkipReason::Quantized });
            return None;
        }
        // Only now is the shape certain: Burn's column layout transposes when it initialises.
        let axes = Axes { dims: param.dims().to_vec(), ..planned.axes };
        Some(Planned { axes, ..planned })
    }

    /// The weights that stay dense, in the order of the model's fields.
    fn kept(mut self, found: &[Found]) -> Vec<KeptParameter> {
        for (name, planned) in self.weights {
            self.kept.push(KeptParameter { name, shape: planned.axes.dims, reason: SkipReason::NotMapped });
        }
        let places: HashMap<&str, usize> = found.iter().enumerate().map(|(i, weight)| (&*weight.path, i)).collect();
        self.kept.sort_by_key(|weight| places.get(&*weight.name).copied());
        self.kept
    }
}

/// The first walk: dense values leave the model and are coded.
struct Take<'walk, 'scope, 'config> {
    plan: &'walk mut Plan<'config>,
    /// The names by which the calibration knows weights, by path.
    names: &'walk HashMap<String, String>,
    done: &'scope Coded,
    progress: &'scope dyn Progress,
    scope: &'walk Scope<'scope>,
    taken: Taken,
}

/// What a walk has taken out of the model.
#[derive(Default)]
struct Taken {
    /// By path.
    weights: HashMap<String, TakenWeight>,
    /// The first of several parameters of one id, and what its values hash to.
    firsts: HashMap<ParamId, (String, u64)>,
    /// The first error; nothing is done after it.
    error: Option<LayerError>,
}

/// What is known of a weight whose values are being coded.
struct TakenWeight {
    codec: CodecSpec,
    axes: Axes,
    device: Device,
    original_bytes: usize,
    /// The path of the parameter of equal id and values whose patterns it shares.
    shared_with: Option<String>,
}

/// A weight to be coded.
struct Job {
    name: String,
    weight: Matrix,
    spec: CodingSpec,
    moments: Option<Moments>,
    dictionary: Option<Arc<PatternDictionary>>,
}

/// What coding has given so far.
#[derive(Default)]
struct Coded {
    running: AtomicUsize,
    /// By path.
    weights: Mutex<HashMap<String, (PackedWeight, Outcome)>>,
    error: Mutex<Option<LayerError>>,
}

impl Coded {
    fn run(&self, job: Job, progress: &dyn Progress) {
        let Job { name, weight, spec, moments, dictionary } = job;
        let weights = weight.shape().num_weights() as u64;
        let mut encoder = Encoder::new(&spec).with_moments(moments);
        if let Some(dictionary) = &dictionary {
            encoder = encoder.with_dictionary(dictionary);
        }
        match encoder.encode(weight) {
            Ok(coded) => {
                progress.tensor_done(&name, weights);
                self.weights.lock().unwrap_or_else(PoisonError::into_inner).insert(name, coded);
            }
            Err(error) => {
                let error = LayerError::from(error).at(&name);
                self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl Take<'_, '_, '_> {
    /// Takes the values out of one parameter and has them coded.
    ///
    /// The dense values are in memory twice while they are read, as tensor and as matrix. Then the tensor goes, unless
    /// a clone of the model holds it. No more matrices wait than there are threads: this one codes when all others do.
    fn take<const D: usize>(
        &mut self,
        name: &str,
        param: Param<Tensor<D>>,
        planned: Planned,
    ) -> Result<Param<Tensor<D>>, LayerError> {
        if self.progress.is_cancelled() {
            let total = self.plan.weights.len() + self.taken.weights.len() + 1;
            let done = self.done.weights.lock().unwrap_or_else(PoisonError::into_inner).len();
            return Err(LayerError::Cancelled { done, total });
        }
        let Planned { codec, over_dictionary, axes, shared } = planned;
        let (id, device, dense) = (param.id, param.lazy_device(), param.base());
        let shape = axes.matrix()?;
        let original_bytes = shape.num_weights() * dense.dtype().size();
        let values = read_floats(name, if axes.transposed { dense.transpose() } else { dense })?;
        let base = placeholder(param);
        let mut weight = TakenWeight { codec, axes, device, original_bytes, shared_with: None };
        if shared {
            let digest = digest(&values);
            match self.taken.firsts.get(&id) {
                Some((first, other)) if *other == digest && self.taken.weights[first].is_coded_as(&weight) => {
                    weight.shared_with = Some(first.clone());
                }
                Some(_) => {}
                None => drop(self.taken.firsts.insert(id, (name.into(), digest))),
            }
        }
        if weight.shared_with.is_none() {
            let config = self.plan.config;
            let spec = CodingSpec::new(weight.codec.clone()).with_rotation(rotation(&weight.codec, None, config.seed)?);
            let moments = match (&config.calibration, self.names.get(name)) {
                (Some(calibration), Some(known)) => calibration.moments(known)?,
                _ => None,
            };
            let dictionary = config.dictionary.clone().filter(|_| over_dictionary);
            let (name, weight) = (name.into(), Matrix::new(shape, values)?);
            self.code(Job { name, weight, spec, moments, dictionary });
        }
        self.taken.weights.insert(name.into(), weight);
        Ok(base)
    }

    fn code(&self, job: Job) {
        let (done, progress) = (self.done, self.progress);
        if done.running.load(Ordering::Relaxed) + 1 >= rayon::current_num_threads() {
            return done.run(job, progress);
        }
        done.running.fetch_add(1, Ordering::Relaxed);
        self.scope.spawn(move |_| {
            done.run(job, progress);
            done.running.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl TakenWeight {
    /// Whether the same values give the same patterns in the other's place.
    fn is_coded_as(&self, other: &Self) -> bool {
        (&self.codec, &self.axes) == (&other.codec, &other.axes)
    }
}

impl Reparameterizer for &mut Take<'_, '_, '_> {
    type Reparam = PatternParam;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<PatternParam>) {
        if self.taken.error.is_some() || self.done.has_failed() {
            return (param, None);
        }
        let Some(planned) = self.plan.next(path, &param) else { return (param, None) };
        let place = (param.id, param.lazy_device());
        let found = self.take(path, param, planned).map(|base| (base, None));
        or_gone(found, place, path, &mut self.taken.error)
    }
}

/// The second walk: patterns are attached where values were taken.
struct Attach<'a> {
    config: &'a ReplaceConfig,
    coded: HashMap<String, (PackedWeight, Outcome)>,
    taken: HashMap<String, TakenWeight>,
    /// What has been attached, for those that share it, and its outcome.
    patterns: HashMap<String, (PatternParam, Outcome)>,
    layers: Vec<LayerReport>,
    error: Option<LayerError>,
}

impl Attach<'_> {
    fn attach<const D: usize>(
        &mut self,
        name: &str,
        base: &Param<Tensor<D>>,
        taken: TakenWeight,
    ) -> Result<PatternParam, LayerError> {
        let (pattern, outcome) = match &taken.shared_with {
            Some(first) => self.patterns[first].clone(),
            None => {
                let (packed, outcome) = self.coded.remove(name).expect("coded, or there was an error");
                let weight = PatternWeight::from_packed(&packed, &taken.device)?;
                (pattern(weight, base, taken.axes, self.config), outcome)
            }
        };
        self.layers.push(LayerReport {
            name: name.into(),
            shape: pattern.weight.shape(),
            codec: taken.codec,
            bits_per_weight: pattern.weight.bits_per_weight(),
            relative_error: outcome.weight.relative_mse().sqrt(),
            output_error: outcome.output.map(|output| output.sums.relative_mse().sqrt()),
            original_bytes: taken.original_bytes,
            stored_bytes: pattern.weight.stored_bytes(),
            device_bytes: pattern.weight.device_bytes(),
            shared_with: taken.shared_with,
            sums: outcome.weight,
        });
        self.patterns.insert(name.into(), (pattern.clone(), outcome));
        Ok(pattern)
    }
}

impl Reparameterizer for &mut Attach<'_> {
    type Reparam = PatternParam;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        base: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<PatternParam>) {
        let Some(taken) = self.taken.remove(path) else { return (base, None) };
        match self.attach(path, &base, taken) {
            Ok(pattern) => (base, Some(pattern)),
            Err(error) => {
                self.error.get_or_insert(error.at(path));
                (base, None)
            }
        }
    }
}

/// The one walk of a skeleton.
struct Randomize<'a> {
    plan: Plan<'a>,
    error: Option<LayerError>,
}

impl Randomize<'_> {
    fn replace<const D: usize>(
        &self,
        param: Param<Tensor<D>>,
        planned: Planned,
    ) -> Result<(Param<Tensor<D>>, PatternParam), LayerError> {
        let (shape, device, config) = (planned.axes.matrix()?, param.lazy_device(), self.plan.config);
        let rotation = rotation(&planned.codec, None, config.seed)?;
        let base = placeholder(param);
        // The deviation of Burn's default for `Linear`; any would do.
        let deviation = (3.0 * shape.d_input() as f32).sqrt().recip();
        let weight = PatternWeight::random(shape, &planned.codec, rotation, deviation, &device)?;
        let pattern = pattern(weight, &base, planned.axes, config);
        Ok((base, pattern))
    }
}

impl Reparameterizer for &mut Randomize<'_> {
    type Reparam = PatternParam;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<PatternParam>) {
        if self.error.is_some() {
            return (param, None);
        }
        let Some(planned) = self.plan.next(path, &param) else { return (param, None) };
        let place = (param.id, param.lazy_device());
        let found = self.replace(param, planned).map(|(base, pattern)| (base, Some(pattern)));
        or_gone(found, place, path, &mut self.error)
    }
}

/// `weight` in place of the values of `param`, of which it is the transpose if that is the weight of a `Linear`.
///
/// # Errors
/// [`LayerError::OtherForm`] if it has another shape.
pub(crate) fn attach<const D: usize>(
    param: Param<Tensor<D>>,
    weight: PatternWeight,
    is_linear: bool,
) -> Result<(Param<Tensor<D>>, PatternParam), LayerError> {
    let axes = Axes { dims: param.dims().to_vec(), transposed: is_linear };
    if D < 2 || axes.matrix().ok() != Some(weight.shape()) {
        let found = format!("codes of a matrix {}", weight.shape());
        return Err(LayerError::OtherForm { found, expected: format!("values of shape {:?}", axes.dims) });
    }
    let base = placeholder(param);
    let config = ReplaceConfig::new(weight.codec().clone());
    let pattern = pattern(weight, &base, axes, &config);
    Ok((base, pattern))
}

/// A weight in place of `base`, trained if that is.
fn pattern<const D: usize>(
    weight: PatternWeight,
    base: &Param<Tensor<D>>,
    axes: Axes,
    config: &ReplaceConfig,
) -> PatternParam {
    let weight = match is_frozen(base) {
        true => weight.no_grad(),
        false => weight.with_trained_dictionary(config.train_dictionaries),
    };
    PatternParam::new(weight, axes, config.synthesis.clone())
}

/// What a walk gives for the parameter `name`; after an error, which goes to `error`, next to nothing: the model is not
/// returned then, but the walk goes on to its end.
pub(crate) fn or_gone<const D: usize>(
    found: Result<(Param<Tensor<D>>, Option<PatternParam>), LayerError>,
    (id, device): (ParamId, Device),
    name: &str,
    error: &mut Option<LayerError>,
) -> (Param<Tensor<D>>, Option<PatternParam>) {
    found.unwrap_or_else(|found| {
        error.get_or_insert(found.at(name));
        (Param::initialized(id, Tensor::zeros([1; D], &device)), None)
    })
}

fn digest(values: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    values.iter().for_each(|value| hasher.write_u32(value.to_bits()));
    hasher.finish()
}
