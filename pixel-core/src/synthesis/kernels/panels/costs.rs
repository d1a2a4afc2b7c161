//! From which batch on panels are faster than what serves fewer rows. In picoseconds of a thread of a Zen 4, of which
//! the ratios count: fitted to products of 576 × 576 and 2048 × 1024 with 6 to 64 rows.

use super::super::Product;
use crate::codec::CodecLayout;
use crate::codec::nibble::NibbleLayout;
use crate::math::simd::SimdLevel;

/// The least batch: the kernels that do not store weights serve eight rows with one pass over the codes, and up to then
/// what a row gives is what it gives by itself. From this batch on a trellis is decoded.
const FEWEST: usize = 8;

/// The batch from which decoded weights are rounded: in f32 a product takes twice as long, but nothing is rounded.
const DECODED_FROM: usize = 64;

/// What tables and panels of a nibble codec take at one level.
struct Costs {
    /// To look up a weight, and more for each nibble of eight weights.
    lookup: [f32; 2],
    /// To make the tables of a column, for each nibble of eight weights.
    table: f32,
    /// To decode a weight, and more for each nibble that reaches an eight.
    decode: [f32; 2],
    /// A product of integers, and to round an activation.
    product: [f32; 2],
}

const AVX2: Costs = Costs { lookup: [6.0, 4.1], table: 900.0, decode: [130.0, 14.5], product: [12.5, 500.0] };
const AVX512: Costs = Costs { lookup: [2.0, 5.0], table: 500.0, decode: [90.0, 8.8], product: [12.5, 400.0] };
const VBMI: Costs = Costs { lookup: [3.0, 2.4], table: 450.0, decode: [90.0, 8.8], product: [9.5, 400.0] };

/// Whether panels are the fastest way to multiply with `batch` rows of activations.
pub(in super::super) fn pay(product: &Product<'_>, batch: usize) -> bool {
    let level = product.simd.level();
    if level < SimdLevel::Avx2 || batch < FEWEST {
        return false;
    }
    match &product.layout {
        CodecLayout::Nibble(layout) => pay_for_nibbles(layout, level, batch),
        CodecLayout::Trellis(layout) if layout.grid.tile.rows == super::LANES => true,
        CodecLayout::Trellis(_) | CodecLayout::Matching(_) | CodecLayout::Uniform(_) => batch >= DECODED_FROM,
    }
}

/// [`pay`] for sums of patterns.
fn pay_for_nibbles(layout: &NibbleLayout, level: SimdLevel, batch: usize) -> bool {
    let costs = match level {
        SimdLevel::Portable | SimdLevel::Avx2 => AVX2,
        SimdLevel::Avx512 => AVX512,
        SimdLevel::Avx512Vbmi => VBMI,
    };
    let (m, nibbles) = (layout.shape.d_output() as f32, layout.per_eight as f32);
    let reaching = (super::patterns::reached(layout) * layout.per_eight) as f32;
    let old = costs.lookup[0] + nibbles * (costs.lookup[1] + costs.table / m);
    let new = costs.product[0] + costs.product[1] / m;
    batch as f32 * (old - new) > costs.decode[0] + costs.decode[1] * reaching
}
