//! Products of many rows: the weight is decoded once for all of them, some of its rows at a time, and the panel that
//! they are is multiplied by Burn's product, which knows a device's tensor cores.
//!
//! A panel is `Wᵀ`, `[d_input, rows]`: units that lie side by side have neighbouring rows, which share their words of
//! codes and store side by side. It is small enough for the device's cache.

use super::{Weight, decode};
use crate::codec::CodecLayout;
use crate::codec::nibble::{EIGHT, FIELD_BYTES, NibbleLayout, PATTERNS, STRIP, Windows};
use crate::synthesis::Arithmetic;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, FloatDType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;

/// Rows of activations from which decoding once is less work than decoding, or looking up, for each: by
/// `cuda_kernels`, look-ups of `lapped:2` take 29 instructions a weight for 8 rows, its panel 31 for any number.
const DECODED_FROM: usize = 16;

/// Values of a panel, at most, but for one of few rows: 16 MiB, a third of an H100's cache.
const VALUES: usize = 4 << 20;

/// Columns that a unit decodes.
const RUN: usize = 32;

/// Units of a cube.
const UNITS: usize = 256;

/// Whether a product of `rows` rows with a weight decodes it once. Tensor cores round the factors of F32 products to
/// eleven bits, which `arithmetic` has to allow.
pub(super) fn takes(x: &CubeTensor, rows: usize, arithmetic: Arithmetic) -> bool {
    let is_exact = || {
        let configurations = &x.client.features().matmul.cmma;
        let tensor = ElemType::Float(FloatKind::TF32);
        !configurations.iter().any(|configuration| configuration.a_type == tensor)
    };
    rows >= DECODED_FROM && (arithmetic == Arithmetic::Integer || is_exact())
}

/// The nibbles that reach a run of [`RUN`] columns, counted from the first that begins in it.
const fn reaching(layout: &NibbleLayout) -> (isize, isize) {
    let per_eight = layout.per_eight as isize;
    let before = match layout.windows {
        Windows::Grouped => 0,
        // ⌊8j / M⌋ + S > 0.
        Windows::Lapped { span } => ((span as isize - 1) * per_eight) / EIGHT as isize,
    };
    (-before, (RUN / EIGHT) as isize * per_eight)
}

/// The column at which the window of nibble `j` begins, counted as `j` is.
const fn start(layout: &NibbleLayout, j: isize) -> isize {
    let (per_eight, eight) = (layout.per_eight as isize, EIGHT as isize);
    match layout.windows {
        Windows::Grouped => j.div_euclid(per_eight) * eight,
        Windows::Lapped { .. } => (j * eight).div_euclid(per_eight),
    }
}

/// Values of a pattern in shared memory: one more than it has, so that patterns begin in different banks.
const fn stride(layout: &NibbleLayout) -> usize {
    layout.span() + 1
}

/// A panel of nibbles: a unit has a row and a run of columns.
#[cube(launch)]
fn nibble_kernel(
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<f32>,
    first_row: usize,
    rows: usize,
    #[comptime] layout: NibbleLayout,
    #[comptime] units: usize,
) {
    let n = comptime!(layout.shape.d_input());
    let (span, stride) = comptime!((layout.span(), stride(&layout)));
    let patterns = comptime!(layout.period() * PATTERNS);
    let mut table = Shared::<[f32]>::new_slice(comptime!(patterns * stride));
    for i in 0..comptime!((patterns * span).div_ceil(units)) {
        let at = i * units + UNIT_POS as usize;
        if at < comptime!(patterns * span) {
            table[at / span * stride + at % span] = dictionary[at];
        }
    }
    sync_cube();
    let runs = comptime!(n.div_ceil(RUN));
    if ABSOLUTE_POS < rows * runs {
        let (place, run) = (ABSOLUTE_POS % rows, ABSOLUTE_POS / rows);
        let row = first_row + place;
        let word = row / STRIP * comptime!(layout.strip_words()) + row % FIELD_BYTES / 4;
        let shift = (row % 4 * 8 + row % STRIP / FIELD_BYTES * 4) as u32;
        let first = run * comptime!(RUN / EIGHT * layout.per_eight);
        let mut values = Array::<f32>::new(RUN);
        #[unroll]
        for c in 0..RUN {
            values[c] = 0.0f32;
        }
        let (before, behind) = comptime!((-reaching(&layout).0 as usize, reaching(&layout).1 as usize));
        #[unroll]
        for i in 0..comptime!(before + behind) {
            // At the edges there are fewer.
            let t = first + i;
            if t >= before && t - before < comptime!(layout.fields()) {
                let field = codes[word + (t - before) * comptime!(FIELD_BYTES / 4)];
                let pattern = ((field >> shift) & 15u32) as usize;
                let begin = comptime!(start(&layout, i as isize - before as isize));
                let part = comptime!((i as isize - before as isize).rem_euclid(layout.period() as isize) as usize);
                let entry = (pattern + comptime!(part * PATTERNS)) * stride;
                #[unroll]
                for j in 0..span {
                    let column = comptime!(begin + j as isize);
                    if comptime!(column >= 0 && column < RUN as isize) {
                        values[comptime!(column as usize)] += table[entry + j];
                    }
                }
            }
        }
        let scale = scales[row];
        #[unroll]
        for c in 0..RUN {
            let column = run * RUN + c;
            if column < n {
                out[column * rows + place] = values[c] * scale;
            }
        }
    }
}

/// A panel of any codes: a unit has a weight.
#[cube(launch)]
fn panel_kernel(
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<f32>,
    first_row: usize,
    #[comptime] rows: usize,
    #[comptime] layout: CodecLayout,
) {
    let len = comptime!(rows * layout.shape().d_input());
    if ABSOLUTE_POS < len {
        let (row, column) = (first_row + ABSOLUTE_POS % rows, ABSOLUTE_POS / rows);
        out[ABSOLUTE_POS] = decode::weight(codes, scales, dictionary, row, column, layout);
    }
}

/// Rows `first..first + rows` of the weight, `[d_input, rows]`.
fn panel(weight: &Weight, first: usize, rows: usize) -> CubeTensor {
    let n = weight.layout.shape().d_input();
    let out = weight.empty(Shape::from([n * rows]));
    let client = out.client.clone();
    let units = UNITS.min(client.properties().hardware.max_units_per_cube as usize);
    let cube_dim = CubeDim::new_1d(units as u32);
    let count = |work: usize| calculate_cube_count_elemwise(&client, work, cube_dim);
    let [codes, scales, dictionary] =
        [&weight.codes, &weight.scales, &weight.dictionary].map(|tensor| tensor.clone().into_tensor_arg());
    let arg = out.clone().into_tensor_arg();
    match weight.layout {
        CodecLayout::Nibble(layout) => {
            let work = rows * n.div_ceil(RUN);
            nibble_kernel::launch(
                &client,
                count(work),
                cube_dim,
                codes,
                scales,
                dictionary,
                arg,
                first,
                rows,
                layout,
                units,
            );
        }
        layout => {
            panel_kernel::launch(
                &client,
                count(rows * n),
                cube_dim,
                codes,
                scales,
                dictionary,
                arg,
                first,
                rows,
                layout,
            );
        }
    }
    CubeBackend::float_reshape(out, Shape::from([n, rows]))
}

/// The products of `x`, `[rows, d_input]`, with each of `weights`, one after the other: `[rows, Σ d_output]`, F32.
pub(super) fn multiply(x: CubeTensor, weights: &[Weight]) -> CubeTensor {
    let x = if x.dtype == DType::F32 { x } else { CubeBackend::float_cast(x, FloatDType::F32) };
    let mut products = Vec::new();
    for weight in weights {
        let (m, n) = (weight.layout.shape().d_output(), weight.layout.shape().d_input());
        let most = (VALUES / n).max(STRIP) / STRIP * STRIP;
        for first in (0..m).step_by(most) {
            products.push(CubeBackend::float_matmul(x.clone(), panel(weight, first, most.min(m - first))));
        }
    }
    if products.len() == 1 { products.remove(0) } else { CubeBackend::float_cat(products, 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Shape;

    #[test]
    fn the_nibbles_of_a_run_are_those_that_reach_it() {
        let shape = Shape::new(32, 1024).unwrap();
        for per_eight in [2, 3, 4, 5, 6, 8] {
            for windows in [Windows::Grouped, Windows::Lapped { span: 16 }, Windows::Lapped { span: 24 }] {
                let layout = NibbleLayout { shape, per_eight, windows };
                let run = 5;
                let first = (run * RUN / EIGHT * per_eight) as isize;
                let (from, to) = reaching(&layout);
                for t in 0..layout.fields() {
                    let (j, begin) = (t as isize - first, layout.start(t));
                    let reaches = begin < (run + 1) * RUN && begin + layout.span() > run * RUN;
                    assert!(!reaches || (from..to).contains(&j), "{layout:?}: nibble {t}");
                    assert_eq!(start(&layout, j), begin as isize - (run * RUN) as isize, "{layout:?}: nibble {t}");
                    let part = j.rem_euclid(layout.period() as isize) as usize;
                    assert_eq!(part, t % layout.period(), "{layout:?}: nibble {t}");
                }
            }
        }
    }
}
