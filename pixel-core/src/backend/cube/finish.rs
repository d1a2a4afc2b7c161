//! What follows products: the sum of their slices, bias, activation, residual and norm, and where other products
//! follow, the preparation of their input.

use super::prepare::{NormKind, Preparation, Steps, norm_row, parameters, prepare_row, prepared};
use super::row;
use super::{empty_like, exponential};
use crate::backend::NormTensors;
use crate::forward::Activation;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// The products of one weight, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Part {
    /// The column behind its last.
    pub(super) end: usize,
    /// The slices that they are the sum of.
    pub(super) slices: usize,
    pub(super) has_bias: bool,
}

/// What follows the products, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Finish {
    parts: [Part; 3],
    activation: Activation,
    has_residual: bool,
    norm: Option<NormKind>,
    /// What the result goes through as the input of the next products, if there are some.
    next: Option<Steps>,
    /// Whether the result itself is asked for.
    is_kept: bool,
}

impl Finish {
    /// Values of a row of the result.
    const fn outputs(&self) -> usize {
        self.parts[2].end / self.activation.inputs()
    }

    /// Whether a cube has a whole row.
    const fn has_rows(&self) -> bool {
        self.norm.is_some() || self.next.is_some()
    }
}

/// The product at `at` of row `row` out of `rows`.
#[cube]
fn product(
    products: &Tensor<f32>,
    rows: usize,
    row: usize,
    at: usize,
    #[comptime] part: Part,
    #[comptime] width: usize,
) -> f32 {
    let mut sum = products[row * width + at];
    for slice in 1..part.slices {
        sum += products[(slice * rows + row) * width + at];
    }
    sum
}

/// The product at `at` of a row, with its bias.
#[cube]
fn biased<A: Float, B: Float, C: Float>(
    products: &Tensor<f32>,
    first: &Tensor<A>,
    second: &Tensor<B>,
    third: &Tensor<C>,
    rows: usize,
    row: usize,
    at: usize,
    #[comptime] finish: Finish,
) -> f32 {
    let parts = comptime!(finish.parts);
    let width = comptime!(finish.parts[2].end);
    let (first_end, second_end) = comptime!((finish.parts[0].end, finish.parts[1].end));
    if at < first_end {
        let value = product(products, rows, row, at, comptime!(parts[0]), width);
        if comptime!(parts[0].has_bias) { value + f32::cast_from(first[at]) } else { value }
    } else if at < second_end {
        let value = product(products, rows, row, at, comptime!(parts[1]), width);
        if comptime!(parts[1].has_bias) { value + f32::cast_from(second[at - first_end]) } else { value }
    } else {
        let value = product(products, rows, row, at, comptime!(parts[2]), width);
        if comptime!(parts[2].has_bias) { value + f32::cast_from(third[at - second_end]) } else { value }
    }
}

#[cube]
fn activated(value: f32, #[comptime] activation: Activation) -> f32 {
    match comptime!(activation) {
        Activation::Identity | Activation::GatedSilu => value,
        Activation::Relu => max(value, 0.0f32),
        Activation::Gelu => {
            0.5f32 * value * (1.0f32 + exponential::erf(value * comptime!(std::f32::consts::FRAC_1_SQRT_2)))
        }
        Activation::GeluTanh => {
            // 2·√(2/π).
            let inner = 1.595_769_f32 * (value + 0.044_715f32 * value * value * value);
            value / (1.0f32 + exponential::exp(-inner))
        }
    }
}

/// Value `at` of a row after bias, activation and residual.
#[cube]
fn finished<A: Float, B: Float, C: Float, R: Float>(
    products: &Tensor<f32>,
    first: &Tensor<A>,
    second: &Tensor<B>,
    third: &Tensor<C>,
    residual: &Tensor<R>,
    rows: usize,
    row: usize,
    at: usize,
    #[comptime] finish: Finish,
) -> f32 {
    let width = comptime!(finish.outputs());
    let mut value = biased::<A, B, C>(products, first, second, third, rows, row, at, finish);
    if comptime!(finish.activation == Activation::GatedSilu) {
        let up = biased::<A, B, C>(products, first, second, third, rows, row, at + width, finish);
        value = value / (1.0f32 + exponential::exp(-value)) * up;
    } else {
        value = activated(value, finish.activation);
    }
    if comptime!(finish.has_residual) {
        value += f32::cast_from(residual[row * width + at]);
    }
    value
}

/// Bias, activation, residual and norm: with a norm or with products that follow a cube has a row, otherwise a unit has
/// a value.
#[cube(launch)]
fn finish_kernel<A: Float, B: Float, C: Float, R: Float, P: Float, Q: Float, F: Float, S: Float, T: Float>(
    products: &Tensor<f32>,
    first: &Tensor<A>,
    second: &Tensor<B>,
    third: &Tensor<C>,
    residual: &Tensor<R>,
    gamma: &Tensor<P>,
    beta: &Tensor<Q>,
    out: &mut Tensor<F>,
    next_gamma: &Tensor<S>,
    next_beta: &Tensor<T>,
    signs: &Tensor<u32>,
    hartley: &Tensor<f32>,
    next: &mut Tensor<f32>,
    rows: usize,
    #[comptime] units: usize,
    #[comptime] finish: Finish,
    #[define(A)] _first_type: ElemType,
    #[define(B)] _second_type: ElemType,
    #[define(C)] _third_type: ElemType,
    #[define(R)] _residual_type: ElemType,
    #[define(P)] _gamma_type: ElemType,
    #[define(Q)] _beta_type: ElemType,
    #[define(F)] _out_type: ElemType,
    #[define(S)] _next_gamma_type: ElemType,
    #[define(T)] _next_beta_type: ElemType,
) {
    let width = comptime!(finish.outputs());
    if comptime!(finish.has_rows()) {
        let mut values = Shared::<[f32]>::new_slice(comptime!(row::slots(width)));
        let mut sums = Shared::<[f32]>::new_slice(units);
        let unit = UNIT_POS as usize;
        // Cubes beyond the last row work on it again: all of them reach every barrier.
        let row = min(CUBE_POS, rows - 1);
        let is_inside = CUBE_POS < rows;
        let turns = comptime!(width.div_ceil(units));
        for i in 0..turns {
            let at = i * units + unit;
            if at < width {
                values[row::slot(at)] =
                    finished::<A, B, C, R>(products, first, second, third, residual, rows, row, at, finish);
            }
        }
        sync_cube();
        if let Some(norm) = comptime!(finish.norm) {
            norm_row::<P, Q>(&mut values, &mut sums, gamma, beta, width, units, norm);
        }
        if comptime!(finish.is_kept) {
            for i in 0..turns {
                let at = i * units + unit;
                if at < width && is_inside {
                    out[row * width + at] = F::cast_from(values[row::slot(at)]);
                }
            }
            sync_cube();
        }
        if let Some(steps) = comptime!(finish.next) {
            prepare_row::<S, T>(&mut values, &mut sums, next_gamma, next_beta, signs, width, units, steps);
            for i in 0..turns {
                let at = i * units + unit;
                if at < width && is_inside {
                    next[row * width + at] = prepared(&values, hartley, at, steps);
                }
            }
        }
    } else {
        let (row, at) = (ABSOLUTE_POS / width, ABSOLUTE_POS % width);
        if row < rows {
            let value = finished::<A, B, C, R>(products, first, second, third, residual, rows, row, at, finish);
            out[ABSOLUTE_POS] = F::cast_from(value);
        }
    }
}

/// What follows products, with its tensors.
pub(super) struct Ending {
    pub(super) biases: [Option<CubeTensor>; 3],
    pub(super) activation: Activation,
    pub(super) residual: Option<CubeTensor>,
    pub(super) norm: NormTensors<CubeBackend>,
}

impl Ending {
    /// Nothing but the sum of slices.
    pub(super) fn sum() -> Self {
        Self {
            biases: [const { None }; 3],
            activation: Activation::Identity,
            residual: None,
            norm: NormTensors::Absent,
        }
    }

    /// Whether products need nothing but that their slices are added up.
    pub(super) fn is_empty(&self) -> bool {
        self.biases.iter().all(Option::is_none)
            && self.activation == Activation::Identity
            && self.residual.is_none()
            && matches!(self.norm, NormTensors::Absent)
    }
}

/// The products of one input with one to three weights.
pub(super) struct Products {
    /// F32, `[slices, rows, width]`.
    pub(super) values: CubeTensor,
    pub(super) parts: [Part; 3],
}

impl Products {
    /// The result of `shape` and `dtype`.
    pub(super) fn finish(self, with: Ending, shape: Shape, dtype: DType) -> CubeTensor {
        if with.is_empty() && dtype == DType::F32 && self.parts.iter().all(|part| part.slices == 1) {
            return CubeBackend::float_reshape(self.values, shape);
        }
        let out = empty_like(&self.values, shape, dtype);
        self.launch(with, out.clone(), true, None);
        out
    }

    /// The result of `shape` and `dtype`, and what `next` makes of it, `[rows, outputs]`, F32.
    pub(super) fn finish_and_prepare(
        self,
        with: Ending,
        next: Preparation,
        shape: Shape,
        dtype: DType,
    ) -> (CubeTensor, CubeTensor) {
        let out = empty_like(&self.values, shape, dtype);
        let input = self.launch(with, out.clone(), true, Some(next));
        (out, input)
    }

    /// What `next` makes of the result, `[rows, outputs]`, F32.
    pub(super) fn prepare(self, with: Ending, next: Preparation) -> CubeTensor {
        let out = empty_like(&self.values, Shape::from([1]), DType::F32);
        self.launch(with, out, false, Some(next))
    }

    /// Returns the input of the next products, or something small.
    fn launch(mut self, with: Ending, out: CubeTensor, is_kept: bool, next: Option<Preparation>) -> CubeTensor {
        let rows = self.values.shape()[1];
        let (norm, gamma, beta) = parameters(with.norm, &self.values);
        with.biases.iter().zip(&mut self.parts).for_each(|(bias, part)| part.has_bias = bias.is_some());
        let finish = Finish {
            parts: self.parts,
            activation: with.activation,
            has_residual: with.residual.is_some(),
            norm,
            next: next.as_ref().map(|next| next.steps),
            is_kept,
        };
        let outputs = finish.outputs();
        let products = self.values;
        // Where no unit waits for another, small cubes go to more multiprocessors.
        let units = if finish.has_rows() { row::units(&out, outputs) } else { row::FEW_UNITS };
        let cube_dim = CubeDim::new_1d(units);
        let needed = if finish.has_rows() { rows * units as usize } else { rows * outputs };
        let input_shape = if next.is_some() { Shape::from([rows, outputs]) } else { Shape::from([1]) };
        let input = empty_like(&products, input_shape, DType::F32);
        // Floats that are not read may be any.
        let next = next.unwrap_or_else(|| Preparation::none(&products));
        let [first, second, third] = with.biases.map(|bias| bias.unwrap_or_else(|| products.clone()));
        let residual = with.residual.unwrap_or_else(|| products.clone());
        let read = [&first, &second, &third, &residual, &gamma, &beta, &out, &next.gamma, &next.beta];
        let types = read.map(|tensor| dtype_to_storage_type(tensor.dtype));
        let client = out.client.clone();
        finish_kernel::launch(
            &client,
            cubecl::calculate_cube_count_elemwise(&client, needed, cube_dim),
            cube_dim,
            products.into_tensor_arg(),
            first.into_tensor_arg(),
            second.into_tensor_arg(),
            third.into_tensor_arg(),
            residual.into_tensor_arg(),
            gamma.into_tensor_arg(),
            beta.into_tensor_arg(),
            out.into_tensor_arg(),
            next.gamma.into_tensor_arg(),
            next.beta.into_tensor_arg(),
            next.signs.into_tensor_arg(),
            next.hartley.into_tensor_arg(),
            input.clone().into_tensor_arg(),
            rows,
            units as usize,
            finish,
            types[0],
            types[1],
            types[2],
            types[3],
            types[4],
            types[5],
            types[6],
            types[7],
            types[8],
        );
        input
    }
}
