//! A parameter whose value is synthesised.

use super::report::ReplacedParameter;
use crate::error::LayerError;
use crate::synthesis::SynthesisMode;
use crate::weight::PatternWeight;
use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Reparameterization,
};
use burn::tensor::{Device, Tensor};
use pixel_core::Shape;
use std::sync::Arc;

/// What [`ParamForm`] gives a visitor in place of a container type.
pub(super) const MARK: &str = "Pattern";

/// What stands in for the dense value of a parameter: patterns, and how they become its shape again.
///
/// Attached to a parameter, it makes [`Param::val`](burn::module::Param::val) synthesise. Reach it through
/// `param.reparameterization::<PatternParam>()`.
#[derive(Module, Debug)]
pub struct PatternParam {
    /// The weight, `[d_output, d_input]`.
    pub weight: PatternWeight,
    form: ParamForm,
    #[module(skip)]
    synthesis: SynthesisMode,
}

impl PatternParam {
    pub(super) fn new(weight: PatternWeight, axes: Axes, synthesis: SynthesisMode) -> Self {
        let (shape, codec) = (weight.shape(), weight.codec());
        let dims = axes.dims.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let mark = format!("{dims}:{}:{}:{}:{codec}", shape.d_output(), shape.d_input(), weight.stored_bytes());
        Self { form: ParamForm { axes, mark: mark.into() }, weight, synthesis }
    }

    /// The shape of the parameter that it stands for.
    pub fn dims(&self) -> &[usize] {
        &self.form.axes.dims
    }
}

impl Reparameterization for PatternParam {
    const NAME: &'static str = "pixel";

    /// The synthesised value, in the type of `base`, of which nothing else is read.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let Axes { dims, transposed } = &self.form.axes;
        let matrix = self.weight.dense(&self.synthesis);
        // Both are views: the matrix has the parameter's order of values, but for the transpose of a matrix.
        let value: Tensor<D> = if *transposed {
            let shape = self.weight.shape();
            matrix.reshape(burn::tensor::Shape::from(vec![shape.d_output(), shape.d_input()])).transpose()
        } else {
            matrix.reshape(burn::tensor::Shape::from(dims.clone()))
        };
        if value.dtype() == base.dtype() { value } else { value.cast(base.dtype()) }
    }
}

/// How the axes of a parameter make a matrix.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axes {
    pub(super) dims: Vec<usize>,
    /// The parameter is the transpose of the matrix, as Burn's `Linear` has it; else the first axis makes the rows and
    /// the others together the columns.
    pub(super) transposed: bool,
}

impl Axes {
    /// The shape of the matrix.
    ///
    /// # Errors
    /// [`LayerError::Shape`] if it holds nothing.
    pub(super) fn matrix(&self) -> Result<Shape, LayerError> {
        let (first, rest) = (self.dims[0], self.dims[1..].iter().product());
        Ok(if self.transposed { Shape::new(rest, first)? } else { Shape::new(first, rest)? })
    }
}

/// The axes of a parameter, and a mark by which a visitor, who never sees what is attached to a parameter, knows it:
/// the walk enters a module whose container type is [`MARK`] and whose name is
/// `dims:d_output:d_input:stored_bytes:codec`.
#[derive(Debug, Clone)]
pub(super) struct ParamForm {
    axes: Axes,
    mark: Arc<str>,
}

impl ParamForm {
    /// What the mark of the parameter `name` says.
    pub(super) fn read_mark(name: String, mark: &str) -> Option<ReplacedParameter> {
        let mut parts = mark.splitn(5, ':');
        let dims = parts.next()?.split('x').map(|axis| axis.parse().ok()).collect::<Option<Vec<usize>>>()?;
        let mut number = || parts.next()?.parse::<usize>().ok();
        let (d_output, d_input, stored_bytes) = (number()?, number()?, number()?);
        let shape = Shape::new(d_output, d_input).ok()?;
        Some(ReplacedParameter { name, dims, shape, codec: parts.next()?.parse().ok()?, stored_bytes })
    }
}

impl Module for ParamForm {
    fn collect_devices(&self, devices: Devices) -> Devices {
        devices
    }

    fn fork(self, _device: &Device) -> Self {
        self
    }

    fn to_device(self, _device: &Device) -> Self {
        self
    }

    fn train(self) -> Self {
        self
    }

    fn valid(&self) -> Self {
        self.clone()
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(&self.mark, MARK);
        visitor.exit_module(&self.mark, MARK);
    }

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        self
    }
}

impl ModuleDisplayDefault for ParamForm {
    fn content(&self, content: Content) -> Option<Content> {
        Some(content)
    }
}

impl ModuleDisplay for ParamForm {}
