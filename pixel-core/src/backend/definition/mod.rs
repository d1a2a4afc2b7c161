//! The definition of every operation, in Burn's own primitives: what runs where there is no kernel, and what kernels
//! are tested against.
//!
//! A decoded weight is a sum of terms, each a constant times values of the dictionary:
//!
//! ```text
//! u[r][c] = Σ_t factor_t[r][c] · Π_j D[index_tj[r][c]]
//! ```
//!
//! The codecs differ in the indices and factors alone ([`super::terms`]); values follow from this one formula, and so
//! do gradients (`gradients.rs`).

use super::terms::terms;
mod attention;

pub(super) use attention::{attend, unpack};

use super::{
    CodedTensors, Direction, FeedForwardTensors, NormTensors, OptionalTensor, PixelBackend, ProjectionTensors,
    RotationTables,
};
use crate::codec::CodecLayout;
use crate::forward::Activation;
use crate::math::rotation::Rotation;
use burn::backend::tensor::{Device, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, IntDType, Shape, Slice, TensorData};

/// One term of a weight's values, all tensors flat, `[num_weights]`.
pub(super) struct Term<B: Backend> {
    /// A constant; one if absent.
    pub(super) factor: Option<FloatTensor<B>>,
    /// Places in the dictionary whose values are multiplied.
    pub(super) indices: Vec<IntTensor<B>>,
}

impl<B: Backend> Term<B> {
    /// `factor · Π D[index]`, without the index at `skipped`; `None` stands for one.
    pub(super) fn product(&self, dictionary: &FloatTensor<B>, skipped: Option<usize>) -> Option<FloatTensor<B>> {
        let kept = self.indices.iter().enumerate().filter(|(j, _)| Some(*j) != skipped);
        kept.fold(self.factor.clone(), |product, (_, index)| {
            let value = B::float_select(dictionary.clone(), 0, index.clone());
            Some(match product {
                None => value,
                Some(product) => B::float_mul(product, value),
            })
        })
    }
}

/// `u`, `[num_weights]`: what the codes select, in units of the scales.
pub(super) fn unscaled<B: Backend>(
    codes: &IntTensor<B>,
    dictionary: &FloatTensor<B>,
    layout: &CodecLayout,
) -> FloatTensor<B> {
    let value = |term: Term<B>| term.product(dictionary, None).expect("a term has a factor or an index");
    terms::<B>(codes, layout).map(value).reduce(B::float_add).expect("a codec has at least one term")
}

/// The scale of each weight, `[num_weights]`, and where it comes from.
pub(super) fn scale_of_weights<B: Backend>(
    scales: &FloatTensor<B>,
    layout: &CodecLayout,
) -> (FloatTensor<B>, IntTensor<B>) {
    let (n, group, per_row) = (layout.shape().d_input(), layout.scale_group(), layout.scales_per_row());
    let places = (0..layout.shape().num_weights()).map(|i| (i / n * per_row + i % n / group) as i32);
    let places = indices::<B>(places.collect(), &scales.device());
    let flat = B::float_reshape(scales.clone(), Shape::from([scales.shape().num_elements()]));
    (B::float_select(flat, 0, places.clone()), places)
}

/// The weight in the rotated basis, `[d_output, d_input]`.
pub(super) fn synthesize<B: Backend>(
    codes: IntTensor<B>,
    scales: FloatTensor<B>,
    dictionary: FloatTensor<B>,
    layout: &CodecLayout,
) -> FloatTensor<B> {
    let values = unscaled::<B>(&codes, &dictionary, layout);
    let (scale, _) = scale_of_weights::<B>(&scales, layout);
    B::float_reshape(B::float_mul(values, scale), dense_shape(layout))
}

/// Rows `rows` of the weight in the rotated basis, `[rows, d_input]`.
pub(super) fn synthesize_rows<B: Backend>(
    rows: IntTensor<B>,
    codes: IntTensor<B>,
    scales: FloatTensor<B>,
    dictionary: FloatTensor<B>,
    layout: &CodecLayout,
) -> FloatTensor<B> {
    B::float_select(synthesize::<B>(codes, scales, dictionary, layout), 0, rows)
}

/// `x · Wᵀ` for rotated `x` `[batch, d_input]`, in f32, as the type of `x`.
pub(super) fn pattern_linear<B: Backend>(
    x: FloatTensor<B>,
    codes: IntTensor<B>,
    scales: FloatTensor<B>,
    dictionary: FloatTensor<B>,
    layout: &CodecLayout,
) -> FloatTensor<B> {
    in_f32::<B>(x, |x| {
        let weight = synthesize::<B>(codes, scales, dictionary, layout);
        B::float_matmul(x, B::float_transpose(weight))
    })
}

/// `x · Q` or `x · Qᵀ` along the last axis: one product for each Kronecker factor of `Q = diag(±1)·(R ⊗ H ⊗ …)/√n`.
pub(super) fn rotate<B: Backend>(
    x: FloatTensor<B>,
    signs: IntTensor<B>,
    hartley: FloatTensor<B>,
    rotation: &Rotation,
    direction: Direction,
) -> FloatTensor<B> {
    let (shape, device, n) = (x.shape(), x.device(), rotation.d_input());
    let rows = shape.num_elements() / n;
    let signs = B::float_reshape(signs_of::<B>(signs, n), Shape::from([1, n]));
    in_f32::<B>(x, |x| {
        let mut x = B::float_reshape(x, Shape::from([rows, n]));
        if direction == Direction::Forward {
            x = B::float_mul(x, signs.clone());
        }
        let odd = rotation.odd_part();
        let places = (0..odd * odd).map(|i| ((i / odd) * (i % odd) % odd) as i32).collect();
        let matrix = B::float_select(hartley, 0, indices::<B>(places, &device));
        x = multiply_factor::<B>(x, B::float_reshape(matrix, Shape::from([odd, odd])), n / odd);
        let mut after = n / odd;
        while after > 1 {
            let side = after.min(LARGEST_HADAMARD);
            after /= side;
            let signs = (0..side * side)
                .map(|i| if ((i / side) & (i % side)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 });
            let matrix = B::float_from_data(TensorData::new(signs.collect::<Vec<f32>>(), [side, side]), &device);
            x = multiply_factor::<B>(x, matrix, after);
        }
        x = B::float_mul_scalar(x, (1.0 / (n as f64).sqrt()).into());
        if direction == Direction::Inverse {
            x = B::float_mul(x, signs);
        }
        B::float_reshape(x, shape)
    })
}

/// A projection with all that goes before and after it, part by part.
pub(super) fn project<B: PixelBackend>(x: FloatTensor<B>, with: ProjectionTensors<B>) -> FloatTensor<B> {
    let ProjectionTensors { norm: before, rotation, weights, activation, residual, post_norm } = with;
    let (mut shape, n) = (x.shape(), *x.shape().as_slice().last().expect("an axis of inputs"));
    let rows = shape.num_elements() / n.max(1);
    let y = in_f32::<B>(x, |x| {
        let x = norm::<B>(B::float_reshape(x, Shape::from([rows, n])), before);
        let x = match rotation {
            RotationTables::Absent => x,
            RotationTables::Present { signs, hartley, rotation } => {
                B::rotate(x, signs, hartley, rotation, Direction::Forward)
            }
        };
        let products = weights.into_weights().map(|weight| {
            let CodedTensors { codes, scales, dictionary, bias, layout, arithmetic } = weight;
            let y = B::pattern_linear(x.clone(), codes, scales, dictionary, layout, arithmetic);
            match bias.into_option() {
                None => y,
                Some(bias) => B::float_add(y, row::<B>(bias)),
            }
        });
        let y = activate::<B>(B::float_cat(products.collect(), 1), activation);
        let y = match residual.into_option() {
            None => y,
            Some(residual) => {
                let residual = B::float_reshape(residual, y.shape());
                B::float_add(y, if residual.dtype() == DType::F32 { residual } else { to_f32::<B>(residual) })
            }
        };
        norm::<B>(y, post_norm)
    });
    let last = shape.num_dims() - 1;
    shape[last] = y.shape()[1];
    B::float_reshape(y, shape)
}

/// What follows an attention, projection by projection.
pub(super) fn feed_forward<B: PixelBackend>(x: FloatTensor<B>, with: FeedForwardTensors<B>) -> FloatTensor<B> {
    let FeedForwardTensors { output, inner, down } = with;
    let y = B::project(x, output);
    let x = B::project(y.clone(), inner);
    B::project(x, ProjectionTensors { residual: OptionalTensor::Present(y), ..down })
}

/// Rows `[rows, n]`, normed.
pub(super) fn norm<B: Backend>(x: FloatTensor<B>, norm: NormTensors<B>) -> FloatTensor<B> {
    let scaled = |x: FloatTensor<B>, gamma: FloatTensor<B>, epsilon: f64| {
        let power = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
        let root = B::float_sqrt(B::float_add_scalar(power, epsilon.into()));
        B::float_mul(B::float_div(x, root), row::<B>(gamma))
    };
    match norm {
        NormTensors::Absent => x,
        NormTensors::Rms { gamma, epsilon } => scaled(x, gamma, epsilon),
        NormTensors::Layer { gamma, beta, epsilon } => {
            let centred = B::float_sub(x.clone(), B::float_mean_dim(x, 1));
            let y = scaled(centred, gamma, epsilon);
            match beta.into_option() {
                None => y,
                Some(beta) => B::float_add(y, row::<B>(beta)),
            }
        }
    }
}

/// `[n]` as a row of F32, `[1, n]`.
fn row<B: Backend>(values: FloatTensor<B>) -> FloatTensor<B> {
    let n = values.shape().num_elements();
    let values = if values.dtype() == DType::F32 { values } else { to_f32::<B>(values) };
    B::float_reshape(values, Shape::from([1, n]))
}

fn to_f32<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::float_cast(x, FloatDType::F32)
}

/// Rows `[rows, inputs · n]` to `[rows, n]`.
fn activate<B: Backend>(x: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    match activation {
        Activation::Identity => x,
        Activation::Relu => B::relu(x),
        Activation::Gelu => B::gelu(x),
        Activation::GeluTanh => {
            // ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))) = x·sigmoid(2·√(2/π)·(x + 0.044715·x³))
            let cube = B::float_mul(B::float_mul(x.clone(), x.clone()), x.clone());
            let inner = B::float_add(x.clone(), B::float_mul_scalar(cube, 0.044715.into()));
            let factor = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            B::float_mul(x, B::sigmoid(B::float_mul_scalar(inner, factor.into())))
        }
        Activation::GatedSilu => {
            let (rows, width) = (x.shape()[0], x.shape()[1] / 2);
            let half = |x: FloatTensor<B>, at: usize| {
                let slices = [Slice::from(0..rows), Slice::from(at * width..(at + 1) * width)];
                B::float_slice(x, &slices)
            };
            let (gate, up) = (half(x.clone(), 0), half(x, 1));
            B::float_mul(B::float_mul(gate.clone(), B::sigmoid(gate)), up)
        }
    }
}

/// The side of the Hadamard matrices that are multiplied out.
const LARGEST_HADAMARD: usize = 64;

/// Multiplies the axis of `matrix`'s side, with `after` values behind it, by the symmetric `matrix`.
fn multiply_factor<B: Backend>(x: FloatTensor<B>, matrix: FloatTensor<B>, after: usize) -> FloatTensor<B> {
    let (shape, side) = (x.shape(), matrix.shape()[0]);
    let before = shape.num_elements() / (side * after);
    let x = B::float_swap_dims(B::float_reshape(x, Shape::from([before, side, after])), 1, 2);
    let x = B::float_matmul(B::float_reshape(x, Shape::from([before * after, side])), matrix);
    let x = B::float_swap_dims(B::float_reshape(x, Shape::from([before, after, side])), 1, 2);
    B::float_reshape(x, shape)
}

/// The signs, `[n]`, from their bits: −1 where one is set.
fn signs_of<B: Backend>(words: IntTensor<B>, n: usize) -> FloatTensor<B> {
    let fields = (0..n).map(|i| crate::codec::Field { word: i / 32, next: i / 32, shift: (i % 32) as u32 });
    let bits = super::terms::read_fields::<B>(&words, fields, 1);
    let bits = B::int_into_float(bits, FloatDType::F32);
    B::float_add_scalar(B::float_mul_scalar(bits, (-2.0).into()), 1.0.into())
}

/// The cosine of every tile with every pattern, `[tiles, patterns]`, for `tiles` `[tiles, tile_len]` and `patterns`
/// `[patterns, tile_len]`; 0 where one of them is zero.
pub(super) fn match_patterns<B: Backend>(tiles: FloatTensor<B>, patterns: FloatTensor<B>) -> FloatTensor<B> {
    let unit = |rows: FloatTensor<B>| {
        // By the largest magnitude first, so that no square leaves the range.
        let largest = B::float_max_dim(B::float_abs(rows.clone()), 1);
        let rows = B::float_div(rows, B::float_clamp_min(largest, f32::MIN_POSITIVE.into()));
        let squares = B::float_sum_dim(B::float_mul(rows.clone(), rows.clone()), 1);
        // At least one, except for a zero row, which stays zero and has no gradient.
        B::float_div(rows, B::float_sqrt(B::float_clamp_min(squares, 0.5.into())))
    };
    let dtype = tiles.dtype();
    let patterns = if patterns.dtype() == DType::F32 { patterns } else { B::float_cast(patterns, FloatDType::F32) };
    let tiles = if dtype == DType::F32 { tiles } else { B::float_cast(tiles, FloatDType::F32) };
    let cosines = B::float_matmul(unit(tiles), B::float_transpose(unit(patterns)));
    if dtype == DType::F32 { cosines } else { B::float_cast(cosines, dtype.into()) }
}

/// Runs `f` in f32 and returns the type of `x`.
fn in_f32<B: Backend>(x: FloatTensor<B>, f: impl FnOnce(FloatTensor<B>) -> FloatTensor<B>) -> FloatTensor<B> {
    match x.dtype() {
        DType::F32 => f(x),
        dtype => B::float_cast(f(B::float_cast(x, FloatDType::F32)), dtype.into()),
    }
}

/// Host indices as a tensor of I32.
pub(super) fn indices<B: Backend>(values: Vec<i32>, device: &Device<B>) -> IntTensor<B> {
    let len = values.len();
    B::int_cast(B::int_from_data(TensorData::new(values, [len]), device), IntDType::I32)
}

/// `[d_output, d_input]`.
pub(super) fn dense_shape(layout: &CodecLayout) -> Shape {
    Shape::from([layout.shape().d_output(), layout.shape().d_input()])
}
