//! What a model holds: the weights of its layers, and the parameters that have been replaced.

use super::param::{MARK, ParamForm};
use super::report::ReplacedParameter;
use crate::codes::{CODES, shape_of};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor};
use pixel_core::Shape;

/// The container type that Burn reports for what is attached to a parameter.
pub(crate) const ATTACHED: &str = "Reparameterization";

/// Containers whose matrices are parts of a compressed weight.
const COMPRESSED: [&str; 2] = ["Struct:PatternWeight", "Struct:LowRankParams"];

/// The kind of layer that holds a weight.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum LayerKind {
    /// `[d_input, d_output]`.
    Linear,
    /// `[n_embedding, d_model]`.
    Embedding,
    /// `[out, in/groups, k…]`; transposed ones `[in, out/groups, k…]`.
    Convolution,
    /// A type that is not known here.
    Other(String),
}

impl LayerKind {
    fn of(container: &str, parameter: &str, rank: usize) -> Self {
        match (container, parameter, rank) {
            ("Struct:Linear", "weight", 2) => Self::Linear,
            ("Struct:Embedding", "weight", 2) => Self::Embedding,
            ("Struct:Conv1d" | "Struct:ConvTranspose1d", "weight", 3)
            | ("Struct:Conv2d" | "Struct:ConvTranspose2d", "weight", 4)
            | ("Struct:Conv3d" | "Struct:ConvTranspose3d", "weight", 5) => Self::Convolution,
            _ => Self::Other(container.split_once(':').map_or(container, |(_, name)| name).into()),
        }
    }
}

/// A float parameter of at least two axes.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: String,
    pub(super) kind: LayerKind,
    pub(super) dims: Vec<usize>,
    pub(super) id: ParamId,
    pub(super) device: Device,
    /// What is attached to it already.
    pub(super) reparameterized: Option<String>,
}

/// The matrices of a model in the order of its fields; no value is read, and no lazy parameter initialised.
pub(super) fn survey<M: Module>(model: &M) -> Vec<Found> {
    let mut survey = Survey::default();
    model.visit(&mut survey);
    survey.found
}

/// The number of floats that a model computes with.
pub(super) fn num_dense_params<M: Module>(model: &M) -> usize {
    let mut survey = Survey::default();
    model.visit(&mut survey);
    survey.others + survey.found.iter().map(|weight| weight.dims.iter().product::<usize>()).sum::<usize>()
}

/// The replaced parameters of a model in the order of its fields.
pub(super) fn replaced<M: Module>(model: &M) -> Vec<ReplacedParameter> {
    let mut survey = Survey::default();
    model.visit(&mut survey);
    survey.replaced
}

#[derive(Default)]
struct Survey {
    path: Vec<String>,
    containers: Vec<String>,
    found: Vec<Found>,
    replaced: Vec<ReplacedParameter>,
    /// The number of values in parameters of one axis, and of weights that are compressed layers.
    others: usize,
}

impl Survey {
    /// Where the walk is inside something attached: the length of the path of the parameter it is attached to.
    fn attached(&self) -> Option<usize> {
        self.containers.iter().position(|container| container == ATTACHED)
    }
}

impl ModuleVisitor for Survey {
    fn enter_module(&mut self, name: &str, container: &str) {
        if container == ATTACHED {
            let path = self.path.join(".");
            if let Some(last) = self.found.last_mut().filter(|last| last.path == path) {
                last.reparameterized = Some(name.into());
            }
        }
        if container == MARK
            && let Some(end) = self.attached()
            && let Some(replaced) = ParamForm::read_mark(self.path[..end].join("."), name)
        {
            if let Some(last) = self.found.last_mut().filter(|last| last.path == replaced.name) {
                // The parameter itself has the shape of its placeholder.
                last.dims.clone_from(&replaced.dims);
            }
            self.replaced.push(replaced);
        }
        if container == CODES && self.attached().is_none() {
            self.others += shape_of(name).map_or(0, Shape::num_weights);
        }
        self.path.push(name.into());
        self.containers.push(container.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let (container, name) = match (self.containers.last(), self.path.last()) {
            (Some(container), Some(name)) => (container.as_str(), name.as_str()),
            _ => ("", ""),
        };
        if self.attached().is_some() || COMPRESSED.contains(&container) {
            return;
        }
        if D < 2 {
            self.others += param.lazy_shape().num_elements();
            return;
        }
        self.found.push(Found {
            path: self.path.join("."),
            kind: LayerKind::of(container, name, D),
            dims: param.lazy_shape().to_vec(),
            id: param.id,
            device: param.lazy_device(),
            reparameterized: None,
        });
    }
}
