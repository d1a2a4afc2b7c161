//! The sums of tables in registers of eight: the compiler takes three times as long by itself.

use super::nibble_tables::{Columns, Sums};
use crate::codec::nibble::{EIGHT, PATTERNS};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Proof that AVX2 may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The capability, if `simd` has it.
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx2).then_some(Self(()))
    }

    /// [`Columns::fill`].
    pub(super) fn fill(self, columns: &Columns, x: &[f32], tables: &mut [[f32; PATTERNS]]) {
        // SAFETY: `self` proves AVX2.
        unsafe { fill(self, columns, x, tables) };
    }
}

#[target_feature(enable = "avx2")]
fn fill(avx2: Avx2, columns: &Columns, x: &[f32], tables: &mut [[f32; PATTERNS]]) {
    columns.fill(avx2, x, tables);
}

impl Sums for Avx2 {
    #[inline(always)]
    fn sums<const STEP: usize, const WIDTH: usize, const COUNT: usize>(
        self,
        taps: &[[f32; WIDTH]],
        x: &[f32],
    ) -> [[f32; WIDTH]; COUNT] {
        assert!(x.len() >= (COUNT - 1) * STEP + taps.len(), "{} activations", x.len());
        let mut sums = [[0.0; WIDTH]; COUNT];
        // SAFETY: `self` proves AVX2; every window lies in `x`; a tap and a sum have `WIDTH` values, one or two eights.
        unsafe {
            let mut totals = [[_mm256_setzero_ps(); 2]; COUNT];
            for (j, tap) in taps.iter().enumerate() {
                let tap: [_; 2] = std::array::from_fn(|i| _mm256_loadu_ps(tap.as_ptr().add(i * EIGHT % WIDTH)));
                for (n, totals) in totals.iter_mut().enumerate() {
                    let x = _mm256_broadcast_ss(&*x.as_ptr().add(n * STEP + j));
                    for (total, tap) in totals.iter_mut().zip(tap).take(WIDTH / EIGHT) {
                        // Not fused, as on other levels.
                        *total = _mm256_add_ps(*total, _mm256_mul_ps(x, tap));
                    }
                }
            }
            for (totals, sums) in totals.into_iter().zip(&mut sums) {
                for (i, total) in totals.into_iter().enumerate().take(WIDTH / EIGHT) {
                    _mm256_storeu_ps(sums.as_mut_ptr().add(i * EIGHT), total);
                }
            }
        }
        sums
    }
}
