//! The trellis step in AVX2 and AVX-512: the arithmetic of [`Tables::distance`], 16 or 32 states at a time.
//!
//! Per block of 32 low values and per `h`: the table's values are subtracted from the target with saturation, doubled
//! where the rate asks for it, squared (high half), and added to the costs of the predecessors, of which each serves
//! `2^k` neighbouring states.

use super::viterbi::{LANES, Tables};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Proof that AVX2 may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

/// Proof that AVX-512 F and BW may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

impl Avx2 {
    /// The capability, if `simd` has it.
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx2).then_some(Self(()))
    }

    /// See [`Engine::step`](super::viterbi::Engine).
    pub(super) fn step(self, tables: &Tables, target: [i16; 2], floor: u16, old: &[u16], new: &mut [u16]) -> u16 {
        check_bounds(tables, old, new);
        // SAFETY: `self` proves AVX2; the lengths that the pointers rely on were checked above.
        unsafe {
            match (tables.step.weights, tables.step.bits) {
                (2, 2) => step_avx2::<2, 2>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (2, 3) => step_avx2::<2, 3>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (2, 4) => step_avx2::<2, 4>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (2, _) => step_avx2::<2, 5>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (_, 3) => step_avx2::<1, 3>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                _ => step_avx2::<1, 4>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
            }
        }
    }
}

impl Avx512 {
    /// The capability, if `simd` has it.
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx512).then_some(Self(()))
    }

    /// See [`Engine::step`](super::viterbi::Engine).
    pub(super) fn step(self, tables: &Tables, target: [i16; 2], floor: u16, old: &[u16], new: &mut [u16]) -> u16 {
        check_bounds(tables, old, new);
        // SAFETY: `self` proves AVX-512 F and BW; the lengths that the pointers rely on were checked above.
        unsafe {
            match (tables.step.weights, tables.step.bits) {
                (2, 2) => step_avx512::<2, 2>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (2, 3) => step_avx512::<2, 3>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (2, 4) => step_avx512::<2, 4>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (2, _) => step_avx512::<2, 5>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                (_, 3) => step_avx512::<1, 3>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
                _ => step_avx512::<1, 4>(tables, target, floor, old.as_ptr(), new.as_mut_ptr()),
            }
        }
    }
}

/// What the vector code relies on.
fn check_bounds(tables: &Tables, old: &[u16], new: &[u16]) {
    let num_low = tables.num_low();
    assert!(num_low.is_multiple_of(LANES), "a trellis too small for vectors");
    assert!(matches!((tables.step.weights, tables.step.bits), (2, 2..=5) | (1, 3..=4)), "no step of {:?}", tables.step);
    assert!(old.len() >= num_low + LANES && new.len() >= num_low, "cost arrays too short");
    assert_eq!(tables.values().len(), tables.step.weights << tables.window, "table size");
}

/// # Safety
/// The machine has AVX2, [`check_bounds`] passed for the slices behind the
/// pointers, and the step is of `WEIGHTS` weights and `BITS` bits.
#[target_feature(enable = "avx2")]
unsafe fn step_avx2<const WEIGHTS: usize, const BITS: u32>(
    tables: &Tables,
    target: [i16; 2],
    floor: u16,
    old: *const u16,
    new: *mut u16,
) -> u16 {
    const HALF: usize = LANES / 2;
    let num_low = tables.num_low();
    // `tables.doublings`, known to the compiler.
    let doublings = if WEIGHTS == 2 { 0 } else { BITS - 2 };
    let targets = [_mm256_set1_epi16(target[0]), _mm256_set1_epi16(target[1])];
    let floor = _mm256_set1_epi16(floor as i16);
    // Lane `i` takes the predecessor cost `i >> k` of the eight loaded.
    let spread: [u8; 32] = std::array::from_fn(|byte| (((byte / 2) >> BITS) * 2 + byte % 2) as u8);
    // SAFETY: an array of 32 bytes.
    let spread = unsafe { _mm256_loadu_si256(spread.as_ptr().cast()) };
    let mut least = _mm256_set1_epi16(-1);
    let mut values = tables.values().as_ptr();
    for block in (0..num_low).step_by(LANES) {
        let mut best = [_mm256_set1_epi16(-1); 2];
        for high in 0..1usize << BITS {
            for (half, best) in best.iter_mut().enumerate() {
                let mut cost = _mm256_setzero_si256();
                for (weight, &target) in targets.iter().enumerate().take(WEIGHTS) {
                    // SAFETY: the block's values, as laid out by `Tables::new`.
                    let value = unsafe { _mm256_loadu_si256(values.add(weight * LANES + half * HALF).cast()) };
                    let mut difference = _mm256_subs_epi16(target, value);
                    for _ in 0..doublings {
                        difference = _mm256_adds_epi16(difference, difference);
                    }
                    cost = _mm256_adds_epu16(cost, _mm256_mulhi_epi16(difference, difference));
                }
                let from = (high * num_low + block + half * HALF) >> BITS;
                // SAFETY: `from` < J, and `LANES` more values can be read.
                let costs = unsafe { _mm_loadu_si128(old.add(from).cast()) };
                let costs = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(costs), spread);
                *best = _mm256_min_epu16(*best, _mm256_adds_epu16(costs, cost));
            }
            // SAFETY: one past the last block at most.
            values = unsafe { values.add(WEIGHTS * LANES) };
        }
        for (half, best) in best.into_iter().enumerate() {
            let best = _mm256_subs_epu16(best, floor);
            least = _mm256_min_epu16(least, best);
            // SAFETY: `block + LANES` ≤ J.
            unsafe { _mm256_storeu_si256(new.add(block + half * HALF).cast(), best) };
        }
    }
    let least = _mm_min_epu16(_mm256_castsi256_si128(least), _mm256_extracti128_si256::<1>(least));
    _mm_extract_epi16::<0>(_mm_minpos_epu16(least)) as u16
}

/// # Safety
/// The machine has AVX-512 F and BW, [`check_bounds`] passed for the slices behind the
/// pointers, and the step is of `WEIGHTS` weights and `BITS` bits.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn step_avx512<const WEIGHTS: usize, const BITS: u32>(
    tables: &Tables,
    target: [i16; 2],
    floor: u16,
    old: *const u16,
    new: *mut u16,
) -> u16 {
    let num_low = tables.num_low();
    // `tables.doublings`, known to the compiler.
    let doublings = if WEIGHTS == 2 { 0 } else { BITS - 2 };
    let targets = [_mm512_set1_epi16(target[0]), _mm512_set1_epi16(target[1])];
    let floor = _mm512_set1_epi16(floor as i16);
    // Lane `i` takes the predecessor cost `i >> k` of the 32 loaded.
    let spread: [u16; LANES] = std::array::from_fn(|lane| (lane >> BITS) as u16);
    // SAFETY: an array of 64 bytes.
    let spread = unsafe { _mm512_loadu_si512(spread.as_ptr().cast()) };
    let mut least = _mm512_set1_epi16(-1);
    let mut values = tables.values().as_ptr();
    for block in (0..num_low).step_by(LANES) {
        let mut best = _mm512_set1_epi16(-1);
        for high in 0..1usize << BITS {
            let mut cost = _mm512_setzero_si512();
            for (weight, &target) in targets.iter().enumerate().take(WEIGHTS) {
                // SAFETY: the block's values, as laid out by `Tables::new`.
                let value = unsafe { _mm512_loadu_si512(values.add(weight * LANES).cast()) };
                let mut difference = _mm512_subs_epi16(target, value);
                for _ in 0..doublings {
                    difference = _mm512_adds_epi16(difference, difference);
                }
                cost = _mm512_adds_epu16(cost, _mm512_mulhi_epi16(difference, difference));
            }
            let from = (high * num_low + block) >> BITS;
            // SAFETY: `from` < J, and `LANES` more values can be read.
            let costs = unsafe { _mm512_loadu_si512(old.add(from).cast()) };
            let costs = _mm512_permutexvar_epi16(spread, costs);
            best = _mm512_min_epu16(best, _mm512_adds_epu16(costs, cost));
            // SAFETY: one past the last block at most.
            values = unsafe { values.add(WEIGHTS * LANES) };
        }
        let best = _mm512_subs_epu16(best, floor);
        least = _mm512_min_epu16(least, best);
        // SAFETY: `block + LANES` ≤ J.
        unsafe { _mm512_storeu_si512(new.add(block).cast(), best) };
    }
    let least = _mm256_min_epu16(_mm512_castsi512_si256(least), _mm512_extracti64x4_epi64::<1>(least));
    // `minpos` is SSE4.1, which AVX-512 implies.
    let least = _mm_min_epu16(_mm256_castsi256_si128(least), _mm256_extracti128_si256::<1>(least));
    _mm_extract_epi16::<0>(_mm_minpos_epu16(least)) as u16
}
