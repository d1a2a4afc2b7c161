//! Projections: one launch for norm and rotation, one for each weight, one for what follows.

use super::row::{self, Turn};
use super::{Weight, empty_like, levels, linear, lookup, tiles};
use crate::backend::{
    CodedTensors, Direction, NormTensors, OptionalTensor, PixelBackend, ProjectionTensors, RotationTables, definition,
};
use crate::codec::CodecLayout;
use crate::forward::Activation;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// A norm, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NormKind {
    /// Whether the mean is taken away.
    centred: bool,
    has_beta: bool,
    /// ε, by its bits.
    epsilon: u32,
}

/// Norms the row in `values`, in place.
#[cube]
fn norm_row<P: Float, Q: Float>(
    values: &mut Shared<[f32]>,
    sums: &mut Shared<[f32]>,
    gamma: &Tensor<P>,
    beta: &Tensor<Q>,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] norm: NormKind,
) {
    let unit = UNIT_POS as usize;
    let steps = comptime!(width.div_ceil(units));
    let mut mean = 0.0f32;
    if comptime!(norm.centred) {
        let mut sum = 0.0f32;
        for i in 0..steps {
            let at = i * units + unit;
            if at < width {
                sum += values[at];
            }
        }
        mean = row::sum_of_units(sum, sums, units) / comptime!(width as f32);
    }
    let mut power = 0.0f32;
    for i in 0..steps {
        let at = i * units + unit;
        if at < width {
            let value = values[at] - mean;
            power += value * value;
        }
    }
    let power = row::sum_of_units(power, sums, units) / comptime!(width as f32);
    let root = f32::sqrt(power + comptime!(f32::from_bits(norm.epsilon)));
    for i in 0..steps {
        let at = i * units + unit;
        if at < width {
            let mut value = (values[at] - mean) / root * f32::cast_from(gamma[at]);
            if comptime!(norm.has_beta) {
                value += f32::cast_from(beta[at]);
            }
            values[at] = value;
        }
    }
    sync_cube();
}

/// Norm and rotation of a row, each optional.
#[cube(launch)]
fn prepare_kernel<F: Float, P: Float, Q: Float>(
    x: &Tensor<F>,
    gamma: &Tensor<P>,
    beta: &Tensor<Q>,
    signs: &Tensor<u32>,
    hartley: &Tensor<f32>,
    out: &mut Tensor<f32>,
    rows: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] norm: Option<NormKind>,
    #[comptime] turn: Option<Turn>,
    #[define(F)] _x_type: ElemType,
    #[define(P)] _gamma_type: ElemType,
    #[define(Q)] _beta_type: ElemType,
) {
    let mut values = Shared::<[f32]>::new_slice(width);
    let mut sums = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    // Cubes beyond the last row work on it again: all of them reach every barrier.
    let start = min(CUBE_POS, rows - 1) * width;
    let steps = comptime!(width.div_ceil(units));
    for i in 0..steps {
        let at = i * units + unit;
        if at < width {
            values[at] = f32::cast_from(x[start + at]);
        }
    }
    sync_cube();
    if let Some(norm) = comptime!(norm) {
        norm_row::<P, Q>(&mut values, &mut sums, gamma, beta, width, units, norm);
    }
    if let Some(turn) = comptime!(turn) {
        for i in 0..steps {
            let at = i * units + unit;
            if at < width {
                values[at] *= row::sign(signs, at);
            }
        }
        sync_cube();
        row::hadamard(&mut values, turn, units);
        for i in 0..steps {
            let at = i * units + unit;
            if at < width && CUBE_POS < rows {
                out[start + at] = row::mixed(&values, hartley, at, turn);
            }
        }
    } else {
        for i in 0..steps {
            let at = i * units + unit;
            if at < width && CUBE_POS < rows {
                out[start + at] = values[at];
            }
        }
    }
}

/// The products of one weight, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Part {
    /// The column behind its last.
    end: usize,
    /// The slices that they are the sum of.
    slices: usize,
    has_bias: bool,
}

/// What follows the products, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Finish {
    parts: [Part; 3],
    activation: Activation,
    has_residual: bool,
    norm: Option<NormKind>,
}

impl Finish {
    /// Values of a row of the result.
    const fn outputs(&self) -> usize {
        self.parts[2].end / self.activation.inputs()
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

/// The error function as in `math/exp.rs`.
#[cube]
fn erf(x: f32) -> f32 {
    let t = 1.0f32 / (1.0f32 + 0.327_591_1f32 * f32::abs(x));
    let polynomial =
        0.254_829_6f32 + t * (-0.284_496_74f32 + t * (1.421_413_8f32 + t * (-1.453_152f32 + t * 1.061_405_4f32)));
    let magnitude = 1.0f32 - t * polynomial * f32::exp(-x * x);
    select(x < 0.0f32, -magnitude, magnitude)
}

#[cube]
fn activated(value: f32, #[comptime] activation: Activation) -> f32 {
    match comptime!(activation) {
        Activation::Identity | Activation::GatedSilu => value,
        Activation::Relu => max(value, 0.0f32),
        Activation::Gelu => 0.5f32 * value * (1.0f32 + erf(value * comptime!(std::f32::consts::FRAC_1_SQRT_2))),
        Activation::GeluTanh => {
            // 2·√(2/π).
            let inner = 1.595_769_f32 * (value + 0.044_715f32 * value * value * value);
            value / (1.0f32 + f32::exp(-inner))
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
        value = value / (1.0f32 + f32::exp(-value)) * up;
    } else {
        value = activated(value, finish.activation);
    }
    if comptime!(finish.has_residual) {
        value += f32::cast_from(residual[row * width + at]);
    }
    value
}

/// Bias, activation, residual and norm: with a norm a cube has a row, without one a unit has a value.
#[cube(launch)]
fn finish_kernel<A: Float, B: Float, C: Float, R: Float, P: Float, Q: Float, F: Float>(
    products: &Tensor<f32>,
    first: &Tensor<A>,
    second: &Tensor<B>,
    third: &Tensor<C>,
    residual: &Tensor<R>,
    gamma: &Tensor<P>,
    beta: &Tensor<Q>,
    out: &mut Tensor<F>,
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
) {
    let width = comptime!(finish.outputs());
    if let Some(norm) = comptime!(finish.norm) {
        let mut values = Shared::<[f32]>::new_slice(width);
        let mut sums = Shared::<[f32]>::new_slice(units);
        let unit = UNIT_POS as usize;
        // Cubes beyond the last row work on it again: all of them reach every barrier.
        let row = min(CUBE_POS, rows - 1);
        let steps = comptime!(width.div_ceil(units));
        for i in 0..steps {
            let at = i * units + unit;
            if at < width {
                values[at] = finished::<A, B, C, R>(products, first, second, third, residual, rows, row, at, finish);
            }
        }
        sync_cube();
        norm_row::<P, Q>(&mut values, &mut sums, gamma, beta, width, units, norm);
        for i in 0..steps {
            let at = i * units + unit;
            if at < width && CUBE_POS < rows {
                out[row * width + at] = F::cast_from(values[at]);
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

/// A norm's constants and parameters; `other` stands in for what is not there.
fn parameters(norm: NormTensors<CubeBackend>, other: &CubeTensor) -> (Option<NormKind>, CubeTensor, CubeTensor) {
    let bits = |epsilon: f64| (epsilon as f32).to_bits();
    match norm {
        NormTensors::Absent => (None, other.clone(), other.clone()),
        NormTensors::Rms { gamma, epsilon } => {
            let kind = NormKind { centred: false, has_beta: false, epsilon: bits(epsilon) };
            (Some(kind), into_contiguous(gamma), other.clone())
        }
        NormTensors::Layer { gamma, beta, epsilon } => {
            let beta = beta.into_option();
            let kind = NormKind { centred: true, has_beta: beta.is_some(), epsilon: bits(epsilon) };
            (Some(kind), into_contiguous(gamma), beta.map_or_else(|| other.clone(), into_contiguous))
        }
    }
}

/// The input as the weights take it, `[rows, width]`, F32.
fn prepare(
    x: CubeTensor,
    norm: NormTensors<CubeBackend>,
    rotation: RotationTables<CubeBackend>,
    [rows, width]: [usize; 2],
) -> CubeTensor {
    let (kind, gamma, beta) = parameters(norm, &x);
    let (turn, signs, hartley) = match rotation {
        RotationTables::Absent => (None, None, None),
        RotationTables::Present { signs, hartley, rotation } => {
            (Some(Turn::new(&rotation)), Some(into_contiguous(signs)), Some(into_contiguous(hartley)))
        }
    };
    let out = empty_like(&x, Shape::from([rows, width]), DType::F32);
    // Bits that are not read may be anything of the right type.
    let signs = signs.unwrap_or_else(|| empty_like(&x, Shape::from([1]), DType::U32));
    let hartley = hartley.unwrap_or_else(|| out.clone());
    let client = out.client.clone();
    let units = row::units(&out, width);
    let cube_dim = CubeDim::new_1d(units);
    let types = [x.dtype, gamma.dtype, beta.dtype].map(dtype_to_storage_type);
    prepare_kernel::launch(
        &client,
        cubecl::calculate_cube_count_elemwise(&client, rows * units as usize, cube_dim),
        cube_dim,
        x.into_tensor_arg(),
        gamma.into_tensor_arg(),
        beta.into_tensor_arg(),
        signs.into_tensor_arg(),
        hartley.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        rows,
        width,
        units as usize,
        kind,
        turn,
        types[0],
        types[1],
        types[2],
    );
    out
}

/// [`PixelBackend::project`]; in parts where a row has no room in shared memory.
pub(super) fn project(x: FloatTensor<CubeBackend>, with: ProjectionTensors<CubeBackend>) -> FloatTensor<CubeBackend> {
    let (mut shape, dtype) = (x.shape(), x.dtype);
    let last = shape.num_dims() - 1;
    let n = shape[last];
    let rows = shape.num_elements() / n.max(1);
    let x = into_contiguous(x);
    let outputs = with.widths().1;
    let has_post_norm = !matches!(with.post_norm, NormTensors::Absent);
    if rows == 0 || (has_post_norm && !row::fits(&x, outputs)) {
        return definition::project::<CubeBackend>(x, with);
    }
    let ProjectionTensors { norm, rotation, weights, activation, residual, post_norm } = with;
    let is_plain = matches!((&norm, &rotation), (NormTensors::Absent, RotationTables::Absent));
    let x = if is_plain {
        CubeBackend::float_reshape(x, Shape::from([rows, n]))
    } else if row::fits(&x, n) {
        prepare(x, norm, rotation, [rows, n])
    } else {
        let x = definition::norm::<CubeBackend>(CubeBackend::float_reshape(x, Shape::from([rows, n])), norm);
        match rotation {
            RotationTables::Absent => x,
            RotationTables::Present { signs, hartley, rotation } => {
                CubeBackend::rotate(x, signs, hartley, rotation, Direction::Forward)
            }
        }
    };
    let x = into_contiguous(x);

    let mut biases = [const { None }; 3];
    let weights = weights.into_weights().enumerate().map(|(i, weight)| {
        let CodedTensors { codes, scales, dictionary, bias, layout, .. } = weight;
        biases[i] = bias.into_option().map(into_contiguous);
        Weight::new(codes, scales, dictionary, layout)
    });
    let weights = weights.collect();
    shape[last] = outputs;
    let (norm, gamma, beta) = parameters(post_norm, &x);
    let Products { values, mut parts } = Products::new(x, weights);
    biases.iter().zip(&mut parts).for_each(|(bias, part)| part.has_bias = bias.is_some());
    let is_finished = biases.iter().all(Option::is_none)
        && activation == Activation::Identity
        && matches!((&residual, norm), (OptionalTensor::Absent, None));
    if is_finished {
        return Products { values, parts }.into_tensor(shape, dtype);
    }
    let residual = residual.into_option().map(into_contiguous);
    let finish = Finish { parts, activation, has_residual: residual.is_some(), norm };
    let [first, second, third] = biases.map(|bias| bias.unwrap_or_else(|| values.clone()));
    let residual = residual.unwrap_or_else(|| values.clone());
    finish_products(values, [first, second, third, residual, gamma, beta], finish, shape, dtype)
}

/// The products of one input with one to three weights.
struct Products {
    /// F32, `[slices, rows, width]`.
    values: CubeTensor,
    parts: [Part; 3],
}

impl Products {
    /// `x` is `[rows, d_input]`, contiguous.
    fn new(x: CubeTensor, weights: Vec<Weight>) -> Self {
        let rows = x.shape()[0];
        let slices = weights.iter().map(|weight| match weight.layout {
            CodecLayout::Nibble(layout) => lookup::slices(&x, &layout, rows),
            CodecLayout::Trellis(layout) if tiles::takes(&layout) => tiles::slices(&x, &layout, rows),
            CodecLayout::Uniform(layout) if levels::takes(&layout) => levels::slices(&x, &layout, rows),
            _ => 1,
        });
        let slices: Vec<usize> = slices.collect();
        let width = weights.iter().map(|weight| weight.layout.shape().d_output()).sum();
        let most = slices.iter().copied().max().unwrap_or(1);
        let values = empty_like(&x, Shape::from([most, rows, width]), DType::F32);
        // Behind the last weight there is nothing.
        let mut parts = [Part { end: width, slices: 1, has_bias: false }; 3];
        let mut start = 0;
        for ((weight, slices), part) in weights.into_iter().zip(slices).zip(&mut parts) {
            let end = start + weight.layout.shape().d_output();
            match weight.layout {
                CodecLayout::Nibble(layout) => lookup::into_columns(x.clone(), weight, layout, &values, start),
                CodecLayout::Trellis(layout) if tiles::takes(&layout) => {
                    tiles::into_columns(x.clone(), weight, layout, &values, start);
                }
                CodecLayout::Uniform(layout) if levels::takes(&layout) => {
                    levels::into_columns(x.clone(), weight, layout, &values, start);
                }
                _ => linear::into_columns(x.clone(), weight, &values, start),
            }
            *part = Part { end, slices, has_bias: false };
            start = end;
        }
        parts[2].end = width;
        Self { values, parts }
    }

    /// The products as they are, of `dtype`.
    fn into_tensor(self, shape: Shape, dtype: DType) -> CubeTensor {
        if self.parts.iter().all(|part| part.slices == 1) && dtype == DType::F32 {
            return CubeBackend::float_reshape(self.values, shape);
        }
        let finish = Finish { parts: self.parts, activation: Activation::Identity, has_residual: false, norm: None };
        let others = std::array::from_fn(|_| self.values.clone());
        finish_products(self.values, others, finish, shape, dtype)
    }
}

/// [`PixelBackend::pattern_linear`]: `x` is `[rows, d_input]`, contiguous, of any float type, which the result has too.
pub(super) fn linear(x: CubeTensor, weight: Weight) -> CubeTensor {
    let (shape, dtype) = (Shape::from([x.shape()[0], weight.layout.shape().d_output()]), x.dtype);
    Products::new(x, vec![weight]).into_tensor(shape, dtype)
}

/// `others` are the three biases, the residual, γ and β; those that `finish` does not ask for may be any floats.
fn finish_products(
    products: CubeTensor,
    others: [CubeTensor; 6],
    finish: Finish,
    shape: Shape,
    dtype: DType,
) -> CubeTensor {
    let rows = products.shape()[1];
    let out = empty_like(&products, shape, dtype);
    let client = out.client.clone();
    let units = row::units(&out, finish.outputs());
    let cube_dim = CubeDim::new_1d(units);
    // With a norm a cube has a row.
    let needed = if finish.norm.is_some() { rows * units as usize } else { rows * finish.outputs() };
    let types = others.each_ref().map(|tensor| dtype_to_storage_type(tensor.dtype));
    let [first, second, third, residual, gamma, beta] = others;
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
        out.clone().into_tensor_arg(),
        rows,
        units as usize,
        finish,
        types[0],
        types[1],
        types[2],
        types[3],
        types[4],
        types[5],
        dtype_to_storage_type(dtype),
    );
    out
}
