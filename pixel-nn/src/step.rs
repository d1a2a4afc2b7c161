//! Projections of one input, with what goes before and after them.
//!
//! ```text
//!  x ─▶ norm ─▶ project ─▶ activation ─▶ + residual ─▶ norm ─▶ y
//! ```
//!
//! A transformer is little else. Where the projections are patterns all of it is one operation of the backend, and the
//! input is rotated and prepared once for all projections; where one is dense, has a low-rank part or protected
//! columns, or is observed by a calibration, it is the same in parts.

use crate::calibration;
use crate::linear::PIXELLinear;
use crate::projection::Projection;
use crate::shared_input::SharedInput;
use crate::synthesis::SynthesisMode;
use burn::backend::Dispatch;
use burn::nn::{LayerNorm, RmsNorm};
use burn::tensor::Tensor;
use burn::tensor::activation::{gelu, gelu_approximate, relu, silu};
use pixel_core::backend::{NormTensors, ReadyFeedForward, ReadyProjection, ReadyWeight};
use pixel_core::synthesis::Arithmetic;

pub use pixel_core::forward::Activation;

/// A norm of Burn's, by reference.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// Root mean square.
    Rms(&'a RmsNorm),
    /// Mean and variance, and the ε that the norm was made with: Burn's layer keeps it to itself.
    Layer(&'a LayerNorm, f64),
}

impl<'a> From<&'a RmsNorm> for Norm<'a> {
    fn from(norm: &'a RmsNorm) -> Self {
        Self::Rms(norm)
    }
}

impl<'a> From<(&'a LayerNorm, f64)> for Norm<'a> {
    fn from((norm, epsilon): (&'a LayerNorm, f64)) -> Self {
        Self::Layer(norm, epsilon)
    }
}

impl Norm<'_> {
    /// Norms the last axis.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Rms(norm) => norm.forward(x),
            Self::Layer(norm, _) => norm.forward(x),
        }
    }

    fn tensors(self) -> NormTensors<Dispatch> {
        match self {
            Self::Rms(norm) => NormTensors::rms(norm.gamma.val(), norm.epsilon),
            Self::Layer(norm, epsilon) => {
                NormTensors::layer(norm.gamma.val(), norm.beta.as_ref().map(|beta| beta.val()), epsilon)
            }
        }
    }
}

/// `N` projections of one input, one to three, whose outputs follow one another; see the [module](self).
///
/// # Example
/// The gated MLP of a Llama, as two operations:
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::nn::RmsNormConfig;
/// use burn::tensor::{Device, Tensor};
/// use pixel_nn::{Activation, PIXELLinearConfig, Projection, ProjectionStep};
/// let device = Device::flex();
/// let map = |from, to| Projection::from(PIXELLinearConfig::new(from, to).with_bias(false).init(&device));
/// let (norm, gate, up, down) = (RmsNormConfig::new(64).init(&device), map(64, 96), map(64, 96), map(96, 64));
/// let x = Tensor::<3>::ones([1, 5, 64], &device);
/// let inner = ProjectionStep::new([&gate, &up]).with_norm(&norm).with_activation(Activation::GatedSilu);
/// let y = ProjectionStep::new([&down]).with_residual(x.clone()).forward(inner.forward(x));
/// assert_eq!(y.dims(), [1, 5, 64]);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ProjectionStep<'a, const N: usize, const D: usize> {
    projections: [&'a Projection; N],
    norm: Option<Norm<'a>>,
    activation: Activation,
    residual: Option<Tensor<D>>,
    post_norm: Option<Norm<'a>>,
}

impl<'a, const N: usize, const D: usize> ProjectionStep<'a, N, D> {
    /// The projections and nothing else.
    pub fn new(projections: [&'a Projection; N]) -> Self {
        const { assert!(N >= 1 && N <= pixel_core::forward::MAX_WEIGHTS, "one to three projections") };
        Self { projections, norm: None, activation: Activation::Identity, residual: None, post_norm: None }
    }

    /// With a norm of the input.
    pub fn with_norm(self, norm: impl Into<Norm<'a>>) -> Self {
        Self { norm: Some(norm.into()), ..self }
    }

    /// With a function of the outputs. A gated one takes two projections of one width: the gate, and what passes it.
    ///
    /// # Panics
    /// If it is gated and there are not two projections of one width.
    pub fn with_activation(self, activation: Activation) -> Self {
        if activation.inputs() == 2 {
            let widths = self.projections.map(Projection::d_output);
            assert!(N == 2 && widths[0] == widths[N - 1], "a gated activation of projections to {widths:?}");
        }
        Self { activation, ..self }
    }

    /// With something added to the outputs, of their shape.
    pub fn with_residual(self, residual: Tensor<D>) -> Self {
        Self { residual: Some(residual), ..self }
    }

    /// With a norm of the outputs.
    pub fn with_post_norm(self, norm: impl Into<Norm<'a>>) -> Self {
        Self { post_norm: Some(norm.into()), ..self }
    }

    /// Applies it: `[…, d_input]` to `[…, Σ d_output]`, or to one `d_output` under a gated activation.
    ///
    /// # Panics
    /// If the last axis of `x` is not `d_input`, or the residual has another shape than the outputs.
    pub fn forward(self, x: Tensor<D>) -> Tensor<D> {
        match self.operation() {
            Some(operation) => operation.run(x),
            None => self.in_parts(x),
        }
    }

    /// All of it as one operation, if all weights can be part of one.
    fn operation(&self) -> Option<ReadyProjection<'a, N>> {
        Some(ReadyProjection {
            biases: self.projections.map(|projection| bias(projection).map(Tensor::into_dispatch)),
            norm: self.norm.map_or(NormTensors::Absent, Norm::tensors),
            activation: self.activation,
            residual: self.residual.clone().map(Tensor::into_dispatch),
            post_norm: self.post_norm.map_or(NormTensors::Absent, Norm::tensors),
            ..ReadyProjection::new(self.ready()?)
        })
    }

    /// The weights as part of one operation, if all can be.
    fn ready(&self) -> Option<[(&'a ReadyWeight, Arithmetic); N]> {
        let mut weights = [None; N];
        for (weight, projection) in weights.iter_mut().zip(self.projections) {
            *weight = Some(ready(projection)?);
        }
        let weights = weights.map(|weight| weight.expect("filled above"));
        let seed = weights[0].0.seed();
        weights.iter().all(|(weight, _)| weight.seed() == seed).then_some(weights)
    }

    fn in_parts(self, x: Tensor<D>) -> Tensor<D> {
        let x = SharedInput::new(self.norm.map_or(x.clone(), |norm| norm.forward(x)));
        let outputs = self.projections.map(|projection| projection.forward_shared(&x));
        let y = activate(outputs.to_vec(), self.activation);
        let y = self.residual.into_iter().fold(y, |y, residual| residual + y);
        self.post_norm.map_or(y.clone(), |norm| norm.forward(y))
    }
}

/// The MLP of a transformer's layer, by reference: `post(x + down(activation(inner(norm(x)))))`, the norms optional.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::nn::RmsNormConfig;
/// use burn::tensor::{Device, Tensor};
/// use pixel_nn::{FeedForward, PIXELLinearConfig, Projection};
/// let device = Device::flex();
/// let map = |from, to| Projection::from(PIXELLinearConfig::new(from, to).with_bias(false).init(&device));
/// let (norm, gate, up, down) = (RmsNormConfig::new(64).init(&device), map(64, 96), map(64, 96), map(96, 64));
/// let mlp = FeedForward::gated(&gate, &up, &down).with_norm(&norm);
/// assert_eq!(mlp.forward(Tensor::<3>::ones([1, 5, 64], &device)).dims(), [1, 5, 64]);
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct FeedForward<'a> {
    inner: &'a Projection,
    up: Option<&'a Projection>,
    down: &'a Projection,
    activation: Activation,
    norm: Option<Norm<'a>>,
    post_norm: Option<Norm<'a>>,
}

impl<'a> FeedForward<'a> {
    /// `down(activation(inner(x)))`.
    ///
    /// # Panics
    /// If the activation is gated: that is [`gated`](Self::gated).
    pub fn new(inner: &'a Projection, down: &'a Projection, activation: Activation) -> Self {
        assert!(activation.inputs() == 1, "{activation:?} takes two projections");
        Self { inner, up: None, down, activation, norm: None, post_norm: None }
    }

    /// `down(silu(gate(x)) · up(x))`.
    pub fn gated(gate: &'a Projection, up: &'a Projection, down: &'a Projection) -> Self {
        let activation = Activation::GatedSilu;
        Self { inner: gate, up: Some(up), down, activation, norm: None, post_norm: None }
    }

    /// With a norm of the input.
    pub fn with_norm(self, norm: impl Into<Norm<'a>>) -> Self {
        Self { norm: Some(norm.into()), ..self }
    }

    /// With a norm of the sum.
    pub fn with_post_norm(self, norm: impl Into<Norm<'a>>) -> Self {
        Self { post_norm: Some(norm.into()), ..self }
    }

    /// Applies it to the last axis.
    ///
    /// # Panics
    /// If the last axis of `x` is not that of the projections.
    pub fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        let down = self.down().with_residual(x.clone());
        down.forward(match self.up {
            None => self.begin([self.inner]).forward(x),
            Some(up) => self.begin([self.inner, up]).forward(x),
        })
    }

    /// Applies it to what `output` makes of `x`, all as one operation if that can be.
    pub(crate) fn behind<const D: usize>(self, output: ProjectionStep<'a, 1, D>, x: Tensor<D>) -> Tensor<D> {
        match self.up {
            None => self.behind_with([self.inner], output, x),
            Some(up) => self.behind_with([self.inner, up], output, x),
        }
    }

    fn behind_with<const N: usize, const D: usize>(
        self,
        inner: [&'a Projection; N],
        output: ProjectionStep<'a, 1, D>,
        x: Tensor<D>,
    ) -> Tensor<D> {
        let operations = (output.operation(), self.begin::<N, D>(inner).operation(), self.down::<D>().operation());
        if let (Some(output), Some(inner), Some(down)) = operations {
            return ReadyFeedForward { output, inner, down }.run(x);
        }
        self.forward(output.forward(x))
    }

    fn begin<const N: usize, const D: usize>(self, inner: [&'a Projection; N]) -> ProjectionStep<'a, N, D> {
        let step = ProjectionStep::new(inner).with_activation(self.activation);
        ProjectionStep { norm: self.norm, ..step }
    }

    fn down<const D: usize>(self) -> ProjectionStep<'a, 1, D> {
        ProjectionStep { post_norm: self.post_norm, ..ProjectionStep::new([self.down]) }
    }
}

/// The weight, if it can be part of an operation: patterns and nothing beside them, multiplied from the codes, and
/// nobody looks at inputs and outputs.
fn ready(projection: &Projection) -> Option<(&ReadyWeight, Arithmetic)> {
    let Projection::Pixel(PIXELLinear { weight, synthesis, .. }) = projection else { return None };
    if matches!(synthesis, SynthesisMode::Cached(_)) || calibration::is_listening() {
        return None;
    }
    Some((weight.ready()?, synthesis.arithmetic()))
}

/// What is added to the products of a projection.
fn bias(projection: &Projection) -> Option<Tensor<1>> {
    match projection {
        Projection::Pixel(linear) => linear.bias.as_ref().map(|bias| bias.val()),
        Projection::Dense(linear) => linear.bias.as_ref().map(|bias| bias.val()),
    }
}

/// The outputs side by side, after the function.
fn activate<const D: usize>(outputs: Vec<Tensor<D>>, activation: Activation) -> Tensor<D> {
    if activation == Activation::GatedSilu {
        let mut outputs = outputs.into_iter();
        let (gate, up) = (outputs.next().expect("a gate"), outputs.next().expect("what passes it"));
        return silu(gate) * up;
    }
    let y = if let [y] = &outputs[..] { y.clone() } else { Tensor::cat(outputs, D - 1) };
    match activation {
        Activation::Identity | Activation::GatedSilu => y,
        Activation::Relu => relu(y),
        Activation::Gelu => gelu(y),
        Activation::GeluTanh => gelu_approximate(y),
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::{LowRankParams, PIXELLinearConfig, PixelModule, WeightCache};
    use burn::module::{Module, Param};
    use burn::nn::{LayerNormConfig, RmsNormConfig};
    use burn::tensor::{Device, Distribution};

    fn normal<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex())
    }

    fn map(d_output: usize, codec: &str) -> PIXELLinear {
        let config = PIXELLinearConfig::new(32, d_output).with_codec(codec.parse().unwrap());
        config.init(&Device::flex()).with_synthesis(SynthesisMode::OnDemandF32)
    }

    fn dense(projection: &Projection) -> Projection {
        projection.to_dense()
    }

    fn assert_near<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>) {
        let distance = (found - expected).abs().max().into_scalar::<f32>();
        assert!(distance < 1e-4, "{what}: {distance}");
    }

    /// All parts at once with patterns, against the same in parts with their dense weights.
    #[test]
    fn one_operation_is_its_parts() {
        let device = Device::flex();
        let (rms, norm) = (RmsNormConfig::new(32).init(&device), LayerNormConfig::new(24).init(&device));
        let x = normal([2, 5, 32]);
        for codec in ["lapped:2:beam=1", "trellis:2:window=8", "uniform:8"] {
            let [a, b] = [(); 2].map(|()| Projection::from(map(24, codec)));
            let (c, residual) = (Projection::from(map(8, codec)), normal([2, 5, 24]));
            for activation in [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh] {
                let step = |a: &Projection| {
                    let step = ProjectionStep::new([a]).with_norm(&rms).with_activation(activation);
                    step.with_residual(residual.clone()).with_post_norm((&norm, 1e-5)).forward(x.clone())
                };
                assert_near(&format!("{codec} {activation:?}"), step(&a), step(&dense(&a)));
            }
            let gated = |a: &Projection, b: &Projection| {
                let step = ProjectionStep::new([a, b]).with_activation(Activation::GatedSilu);
                step.with_residual(residual.clone()).forward(x.clone())
            };
            assert_near(codec, gated(&a, &b), gated(&dense(&a), &dense(&b)));
            let three = |a: &Projection, b: &Projection, c: &Projection| {
                ProjectionStep::new([a, b, c]).with_norm(&rms).forward(x.clone())
            };
            assert_eq!(three(&a, &b, &c).dims(), [2, 5, 56]);
            assert_near(codec, three(&a, &b, &c), three(&dense(&a), &dense(&b), &dense(&c)));
            // One that is dense, one that is cached, one of another rotation: in parts.
            assert_near(codec, gated(&a, &b), gated(&a, &dense(&b)));
            let cached = map(24, codec).with_synthesis(SynthesisMode::Cached(WeightCache::new(1 << 20)));
            let cached = Projection::from(cached);
            assert_near(codec, gated(&cached, &a), gated(&dense(&cached), &a));
            let config = PIXELLinearConfig::new(32, 24).with_codec(codec.parse().unwrap()).with_seed(7);
            let other = config.init(&device).with_synthesis(SynthesisMode::OnDemandF32).into();
            assert_near(codec, gated(&a, &other), gated(&a, &dense(&other)));
        }
    }

    /// A layer's end as one operation, against its steps and against dense weights.
    #[test]
    fn a_feed_forward_is_its_steps() {
        let device = Device::flex();
        let (rms, norm) = (RmsNormConfig::new(24).init(&device), LayerNormConfig::new(24).init(&device));
        let back = PIXELLinearConfig::new(40, 24).with_codec("lapped:2".parse().unwrap()).init(&device);
        let down = Projection::from(back.with_synthesis(SynthesisMode::OnDemandF32));
        let wide = || {
            let config = PIXELLinearConfig::new(24, 40).with_codec("lapped:2".parse().unwrap());
            Projection::from(config.init(&device).with_synthesis(SynthesisMode::OnDemandF32))
        };
        let (output, gate, up) = (Projection::from(map(24, "lapped:2")), wide(), wide());
        let (x, residual) = (normal([2, 5, 32]), normal([2, 5, 24]));
        let of = |parts: [&Projection; 4], gated: bool| {
            let [output, gate, up, down] = parts;
            let mlp = match gated {
                true => FeedForward::gated(gate, up, down).with_norm(&rms),
                false => FeedForward::new(gate, down, Activation::Gelu).with_post_norm((&norm, 1e-5)),
            };
            let first = ProjectionStep::new([output]).with_residual(residual.clone());
            let whole = mlp.behind(first.clone(), x.clone());
            assert_near("as steps", whole.clone(), mlp.forward(first.forward(x.clone())));
            whole
        };
        for gated in [true, false] {
            let dense = [&output, &gate, &up, &down].map(dense);
            let [a, b, c, d] = &dense;
            let expected = of([a, b, c, d], gated);
            assert_near("coded", of([&output, &gate, &up, &down], gated), expected.clone());
            assert_near("one of them dense", of([&output, b, &up, &down], gated), expected);
        }
    }

    #[test]
    fn a_low_rank_part_is_not_forgotten() {
        let layer = map(24, "lapped:2:beam=1");
        let part = LowRankParams { down: Param::from_tensor(normal([32, 3])), up: Param::from_tensor(normal([3, 24])) };
        let (x, plain) = (normal([1, 2, 32]), Projection::from(layer.clone()));
        let with_part = Projection::from(layer.with_low_rank(part));
        let step = |projection: &Projection| ProjectionStep::new([projection]).forward(x.clone());
        assert_near("with a part", step(&with_part), step(&dense(&with_part)));
        assert!((step(&with_part) - step(&plain)).abs().max().into_scalar::<f32>() > 0.1);
    }

    #[test]
    fn a_weight_that_has_changed_is_not_that_of_before() {
        struct Double;
        impl burn::module::ModuleMapper for Double {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                param.map(|values| values * 2.0)
            }
        }
        let layer = map(24, "lapped:2:beam=1");
        let x = normal([1, 1, 32]);
        let step = |layer: &PIXELLinear| ProjectionStep::new([&layer.clone().into()]).forward(x.clone());
        let before = step(&layer);
        // Scales, patterns and bias doubled: the products four times.
        let bias = layer.bias.as_ref().unwrap().val().reshape([1, 1, 24]);
        let doubled = layer.clone().map(&mut Double);
        assert_near("mapped", step(&doubled), (before.clone() - bias.clone()) * 4.0 + bias.clone() * 2.0);
        let mut halved = layer.clone();
        halved.weight = halved.weight.map_scales(|scales| scales * 0.5);
        assert_near("scaled", step(&halved), (before.clone() - bias.clone()) * 0.5 + bias);
        assert_near("as it was", step(&layer), before);
        assert_near("dense", step(&doubled), doubled.to_dense().forward(x.clone()));
    }

    #[test]
    #[should_panic(expected = "a gated activation of projections to [24, 8]")]
    fn gates_of_another_width_are_refused() {
        let (a, b) = (map(24, "uniform:4").into(), map(8, "uniform:4").into());
        let _ = ProjectionStep::<2, 3>::new([&a, &b]).with_activation(Activation::GatedSilu);
    }
}
