//! The walk over a model in which dense values give way to patterns.

use super::config::{ReplaceConfig, Selection};
use super::param::{Axes, PatternParam};
use super::report::{KeptParameter, LayerReport, ReplacementReport, SkipReason};
use super::survey::{Found, LayerKind, survey};
use crate::error::LayerError;
use crate::linear::rotation;
use crate::weight::{PatternWeight, encode, read_floats};
use burn::module::{Module, Param, ParamId, Reparameterizer};
use burn::tensor::Tensor;
use pixel_core::backend::check_device;
use pixel_core::math::metrics::ErrorSums;
use pixel_core::{CodecSpec, Matrix};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};

/// What the patterns of a walk are made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Source {
    /// The values of the weights.
    Values,
    /// Random numbers, which a record will overwrite. No value is read.
    Random,
}

/// Replaces the weights that `config` selects; the report has layers if they came from values.
pub(super) fn replace<M: Module>(
    model: M,
    config: &ReplaceConfig,
    source: Source,
) -> Result<(M, ReplacementReport), LayerError> {
    let selection = config.compile()?;
    let found = survey(&model);
    selection.check_used(&found)?;
    let mut walk = Walk::new(config, source);
    walk.plan(&selection, &found)?;
    let model = model.apply_reparameterization(&mut walk);
    Ok((model, walk.finish(&found)?))
}

/// A weight that is to be replaced.
struct Planned {
    codec: CodecSpec,
    axes: Axes,
    /// Other parameters have the same id.
    shared: bool,
}

/// The first of several parameters of one id.
struct First {
    name: String,
    digest: u64,
    codec: CodecSpec,
    sums: ErrorSums,
    pattern: PatternParam,
}

/// One walk: what is to be done, and what has been done.
struct Walk<'a> {
    config: &'a ReplaceConfig,
    source: Source,
    /// By path.
    plan: HashMap<String, Planned>,
    firsts: HashMap<ParamId, First>,
    report: ReplacementReport,
    /// The first error; nothing is done after it.
    error: Option<LayerError>,
}

impl<'a> Walk<'a> {
    fn new(config: &'a ReplaceConfig, source: Source) -> Self {
        let (plan, firsts) = (HashMap::new(), HashMap::new());
        Self { config, source, plan, firsts, report: ReplacementReport::default(), error: None }
    }

    /// Decides on every weight before any is touched.
    fn plan(&mut self, selection: &Selection<'_>, found: &[Found]) -> Result<(), LayerError> {
        let mut owners: HashMap<ParamId, usize> = HashMap::new();
        found.iter().for_each(|weight| *owners.entry(weight.id).or_default() += 1);
        for weight in found {
            let (name, axes) = (weight.path.clone(), axes(weight));
            match selection.decide(weight) {
                Err(reason) => self.report.kept.push(KeptParameter { name, shape: axes.dims, reason }),
                Ok(codec) => {
                    let checked = check_device(&weight.device).map_err(LayerError::from).and(axes.matrix());
                    checked.map_err(|error| at(&name, error))?;
                    self.plan.insert(name, Planned { codec, axes, shared: owners[&weight.id] > 1 });
                }
            }
        }
        Ok(())
    }

    /// The report, its entries in the order of the model's fields.
    fn finish(mut self, found: &[Found]) -> Result<ReplacementReport, LayerError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        for (name, planned) in self.plan {
            self.report.kept.push(KeptParameter { name, shape: planned.axes.dims, reason: SkipReason::NotMapped });
        }
        let places: HashMap<&str, usize> = found.iter().enumerate().map(|(i, weight)| (&*weight.path, i)).collect();
        self.report.kept.sort_by_key(|weight| places.get(&*weight.name).copied());
        Ok(self.report)
    }

    /// The placeholder and the patterns of one weight.
    ///
    /// The dense values are in memory twice while they are read, as tensor and as matrix. Then the tensor goes, unless
    /// a clone of the model holds it, and the search for codes begins.
    fn patterns<const D: usize>(
        &mut self,
        name: &str,
        param: Param<Tensor<D>>,
        planned: Planned,
    ) -> Result<(Param<Tensor<D>>, PatternParam), LayerError> {
        let (id, device, dense) = (param.id, param.lazy_device(), param.base());
        // Only now is the shape certain: Burn's column layout transposes when it initialises.
        let axes = Axes { dims: dense.dims().to_vec(), ..planned.axes };
        let planned = Planned { axes, ..planned };
        let shape = planned.axes.matrix()?;
        let pattern = |weight: PatternWeight, base: &Param<Tensor<D>>, planned: Planned| {
            let weight = if is_frozen(base) { weight.no_grad() } else { weight };
            PatternParam::new(weight, planned.axes, self.config.synthesis.clone())
        };
        let rotation = rotation(&planned.codec, None, self.config.seed)?;
        if self.source == Source::Random {
            drop(dense);
            let base = placeholder(param);
            // The deviation of Burn's default for `Linear`; any would do.
            let deviation = (3.0 * shape.d_input() as f32).sqrt().recip();
            let weight = PatternWeight::random(shape, &planned.codec, rotation, deviation, &device)?;
            let pattern = pattern(weight, &base, planned);
            return Ok((base, pattern));
        }
        let original_bytes = shape.num_weights() * dense.dtype().size();
        let values = read_floats(name, if planned.axes.transposed { dense.transpose() } else { dense })?;
        let base = placeholder(param);
        let digest = if planned.shared { digest(&values) } else { 0 };
        let report =
            |pattern: &PatternParam, codec: CodecSpec, sums: ErrorSums, shared_with: Option<String>| LayerReport {
                name: name.into(),
                shape,
                codec,
                bits_per_weight: pattern.weight.bits_per_weight(),
                relative_error: sums.relative_mse().sqrt(),
                original_bytes,
                stored_bytes: pattern.weight.stored_bytes(),
                device_bytes: pattern.weight.device_bytes(),
                shared_with,
                sums,
            };
        if let Some(first) = self.firsts.get(&id).filter(|first| first.is_same(digest, &planned)) {
            let sums = first.sums;
            self.report.layers.push(report(&first.pattern, planned.codec, sums, Some(first.name.clone())));
            return Ok((base, first.pattern.clone()));
        }
        let (packed, sums) = encode(Matrix::new(shape, values)?, &planned.codec, rotation)?;
        let (codec, shared) = (planned.codec.clone(), planned.shared);
        let pattern = pattern(PatternWeight::from_packed(&packed, &device)?, &base, planned);
        self.report.layers.push(report(&pattern, codec.clone(), sums, None));
        if shared {
            let first = First { name: name.into(), digest, codec, sums, pattern: pattern.clone() };
            self.firsts.entry(id).or_insert(first);
        }
        Ok((base, pattern))
    }
}

impl First {
    /// Whether the patterns serve another parameter as they are.
    fn is_same(&self, digest: u64, planned: &Planned) -> bool {
        (self.digest, &self.codec, self.pattern.axes()) == (digest, &planned.codec, &planned.axes)
    }
}

impl Reparameterizer for &mut Walk<'_> {
    type Reparam = PatternParam;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<PatternParam>) {
        if self.error.is_some() {
            return (param, None);
        }
        let Some(planned) = self.plan.remove(path) else { return (param, None) };
        if !param.dtype().is_float() {
            let (name, shape) = (path.into(), planned.axes.dims);
            self.report.kept.push(KeptParameter { name, shape, reason: SkipReason::Quantized });
            return (param, None);
        }
        // Kept for the case of an error: the model is not returned then, but the walk goes on to its end.
        let (id, device) = (param.id, param.lazy_device());
        match self.patterns(path, param, planned) {
            Ok((base, pattern)) => (base, Some(pattern)),
            Err(error) => {
                self.error = Some(at(path, error));
                (Param::initialized(id, Tensor::zeros([1; D], &device)), None)
            }
        }
    }
}

fn at(name: &str, error: LayerError) -> LayerError {
    LayerError::Parameter { name: name.into(), source: Box::new(error) }
}

fn axes(weight: &Found) -> Axes {
    Axes { dims: weight.dims.clone(), transposed: weight.kind == LayerKind::Linear }
}

/// One value in place of all: the parameter keeps its id, device, type, mappers and whether it is trained.
fn placeholder<const D: usize>(param: Param<Tensor<D>>) -> Param<Tensor<D>> {
    let one = Tensor::zeros([1; D], (&param.device(), param.dtype()));
    let id = param.id;
    param.transform_for_load(one, id)
}

/// Whether training leaves the parameter alone. On a device without gradients its tensor does not show it, and only
/// [`Module::train`] brings it to light.
fn is_frozen<const D: usize>(base: &Param<Tensor<D>>) -> bool {
    if base.device().is_autodiff() {
        return !base.is_require_grad();
    }
    #[cfg(feature = "autodiff")]
    return !base.clone().train().is_require_grad();
    #[cfg(not(feature = "autodiff"))]
    false
}

fn digest(values: &[f32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    values.iter().for_each(|value| hasher.write_u32(value.to_bits()));
    hasher.finish()
}
