//! The products of a block with AVX2, AVX-512 BW and VNNI.
//!
//! A tile is some rows of activations × two registers of rows of the weight; its sums stay in registers for the whole
//! block, and a step takes one pair of columns.

use super::round::Block;
use super::weights::WeightBlock;
use super::{DEPTH, LANES};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Proof that the machine has AVX2 at least, and what more it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel(SimdLevel);

impl Kernel {
    /// The kernel, if `simd` has the instructions.
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx2).then(|| Self(simd.level()))
    }

    /// Adds to `sums` `[rows of x, rows of the weight]` the products of a block, in steps of the activations.
    pub(super) fn add_product(self, weights: WeightBlock<'_>, x: &[Block], sums: &mut [[f32; LANES]]) {
        assert_eq!(x.len(), sums.len(), "rows of activations");
        match self.0 {
            // SAFETY: a `Simd` exists only for levels that the machine has.
            SimdLevel::Avx512Vbmi => unsafe { vnni::add_product(weights, x, sums) },
            // SAFETY: as above.
            SimdLevel::Avx512 => unsafe { avx512::add_product(weights, x, sums) },
            // SAFETY: as above; the kernel does not exist below AVX2.
            _ => unsafe { avx2::add_product(weights, x, sums) },
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_dot_vnni(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_dpwssd_epi32(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_dot_avx512(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_dot_avx2(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_scaled_512(sums: __m512, integers: __m512i, steps: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), steps, sums)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled_256(sums: __m256, integers: __m256i, steps: __m256) -> __m256 {
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers), steps, sums)
}

/// The module of a level: its features, the lanes of a register, the rows of its tiles, and its instructions. Eight
/// rows × two registers are as fast as any other tile on a Zen 4, with sixteen of 32 registers, and 16 rows are two.
macro_rules! level {
    (
        $level:ident, $features:literal, $width:literal, [$($rows:literal)+], $add_dot:ident, $add_scaled:ident,
        $zero:ident, $broadcast:ident, $load:ident, $load_f32:ident, $store_f32:ident
    ) => {
        mod $level {
            use super::*;

            /// Registers for the rows of the weight.
            const REGISTERS: usize = 2;

            /// # Safety
            /// The machine has the level.
            #[target_feature(enable = $features)]
            pub(super) unsafe fn add_product(weights: WeightBlock<'_>, x: &[Block], sums: &mut [[f32; LANES]]) {
                let mut done = 0;
                $(
                    while x.len() - done >= $rows {
                        let (x, sums) = (x[done..].first_chunk(), sums[done..].first_chunk_mut());
                        let (x, sums) = x.zip(sums).expect("rows of a tile");
                        for first in (0..LANES).step_by(REGISTERS * $width) {
                            tile::<$rows>(weights, x, first, sums);
                        }
                        done += $rows;
                    }
                )+
            }

            /// `R` rows of activations, and the rows of the weight from `first` on.
            #[inline]
            #[target_feature(enable = $features)]
            fn tile<const R: usize>(
                weights: WeightBlock<'_>,
                x: &[Block; R],
                first: usize,
                sums: &mut [[f32; LANES]; R],
            ) {
                assert!(weights.pairs.len() <= DEPTH / 2 && first + REGISTERS * $width <= LANES, "a tile");
                let mut integers = [[$zero(); REGISTERS]; R];
                for (pair, weights) in weights.pairs.iter().enumerate() {
                    // SAFETY: lanes below `LANES`, as was checked.
                    let weights: [_; REGISTERS] = std::array::from_fn(|i| unsafe {
                        $load(weights.as_ptr().add(2 * (first + i * $width)).cast())
                    });
                    // The rows that follow, in steps of their own; any address may be asked for.
                    let next = x.as_ptr_range().end.cast::<i8>().wrapping_add(pair * size_of_val(x) / (DEPTH / 2));
                    _mm_prefetch::<_MM_HINT_T0>(next);
                    for (integers, x) in integers.iter_mut().zip(x) {
                        // SAFETY: two of `DEPTH` integers, as was checked.
                        let x = $broadcast(unsafe { x.as_ptr().add(2 * pair).cast::<i32>().read_unaligned() });
                        for (integers, weights) in integers.iter_mut().zip(weights) {
                            *integers = $add_dot(*integers, weights, x);
                        }
                    }
                }
                for (integers, sums) in integers.iter().zip(sums) {
                    for (i, integers) in integers.iter().enumerate() {
                        let lane = first + i * $width;
                        // SAFETY: lanes below `LANES`, as was checked.
                        unsafe {
                            let (sums, steps) = (sums.as_mut_ptr().add(lane), weights.steps.as_ptr().add(lane));
                            $store_f32(sums, $add_scaled($load_f32(sums), *integers, $load_f32(steps)));
                        }
                    }
                }
            }
        }
    };
}

level!(
    vnni, "avx512f,avx512bw,avx512vnni", 16, [8 4 2 1], add_dot_vnni, add_scaled_512,
    _mm512_setzero_si512, _mm512_set1_epi32, _mm512_loadu_si512, _mm512_loadu_ps, _mm512_storeu_ps
);
level!(
    avx512, "avx512f,avx512bw", 16, [8 4 2 1], add_dot_avx512, add_scaled_512,
    _mm512_setzero_si512, _mm512_set1_epi32, _mm512_loadu_si512, _mm512_loadu_ps, _mm512_storeu_ps
);
level!(
    avx2, "avx2,fma", 8, [6 3 2 1], add_dot_avx2, add_scaled_256,
    _mm256_setzero_si256, _mm256_set1_epi32, _mm256_loadu_si256, _mm256_loadu_ps, _mm256_storeu_ps
);
