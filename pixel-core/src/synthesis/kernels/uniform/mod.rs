//! Products with indices on a uniform grid: an index is a weight up to the group's zero point and scale, so that no
//! decoded weight is stored.

mod avx2;
mod avx512;
mod float;
mod integer;

use super::{Arithmetic, Product};
use crate::codec::uniform::UniformLayout;
use crate::math::simd::SimdLevel;

/// Weights that are unpacked together; groups and rows are whole multiples.
const UNPACKED: usize = 16;

/// The batch from which a decoded weight serves enough rows: in f32, in integers, and in integers with VNNI, which no
/// batch up to the last was found to lose by.
const DECODED_FROM: [usize; 3] = [16, 64, 256];

/// `x·Wᵀ`, `[d_output, batch]`, for `x` `[batch, d_input]`; `false`, and `out` unchanged, if there is no kernel for it.
pub(super) fn linear(product: &Product<'_>, layout: &UniformLayout, x: &[f32], out: &mut [f32]) -> bool {
    let (n, level) = (layout.shape.d_input(), product.simd.level());
    let are_multiples_of = |weights| layout.group.is_multiple_of(weights) && n.is_multiple_of(weights);
    let has_vnni = level == SimdLevel::Avx512Vbmi;
    let in_integers = product.arithmetic == Arithmetic::Integer && (has_vnni || are_multiples_of(integer::STEP));
    let decoded_from = DECODED_FROM[usize::from(in_integers) + usize::from(in_integers && has_vnni)];
    // Training may have moved the levels from where every file has them.
    let are_integers = || product.dictionary.iter().enumerate().all(|(i, level)| *level == i as f32);
    if level < SimdLevel::Avx2 || !are_multiples_of(UNPACKED) || x.len() / n >= decoded_from || !are_integers() {
        return false;
    }
    if in_integers {
        integer::linear(product, layout, x, out);
    } else {
        float::linear(product, layout, x, out);
    }
    true
}

/// How far ahead indices are asked for: the processor itself does not look beyond the end of a page.
const AHEAD: usize = 16384;

/// Asks for the line that lies `ahead` bytes behind the first of `codes`.
#[inline(always)]
fn prefetch(codes: &[u8], ahead: usize) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: any address may be asked for, and every x86-64 has the instruction.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(codes.as_ptr().wrapping_add(ahead).cast()) };
}
