//! The step of the [coarse search](super) in AVX2 and AVX-512 VBMI: 32 or 64 states at a time.
//!
//! With VBMI the costs of all levels are one or two registers, and a shuffle looks up 64 of them; AVX2 looks up the
//! cost of the distance, which is below 16.

use super::LANES;
use super::engine::CoarseStep;
use super::tables::{CoarseTables, MAX_DISTANCE, cost, slope};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Proof that AVX2 may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

/// Proof that AVX-512 F, BW and VBMI may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Vbmi(());

impl Avx2 {
    /// The capability, if `simd` has it.
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx2).then_some(Self(()))
    }

    /// See [`CoarseEngine::step`](super::engine::CoarseEngine).
    pub(super) fn step<const N: usize>(self, tables: &CoarseTables, tiles: &mut [CoarseStep<'_>; N]) {
        check_bounds(tables, tiles);
        // SAFETY: `self` proves AVX2; the lengths that the pointers rely on were checked above.
        unsafe {
            match (tables.step.weights, tables.step.bits) {
                (2, 2) => step_avx2::<2, 2, N>(tables, tiles),
                (2, 3) => step_avx2::<2, 3, N>(tables, tiles),
                (2, 4) => step_avx2::<2, 4, N>(tables, tiles),
                (2, _) => step_avx2::<2, 5, N>(tables, tiles),
                (_, 3) => step_avx2::<1, 3, N>(tables, tiles),
                _ => step_avx2::<1, 4, N>(tables, tiles),
            }
        }
    }
}

impl Avx512Vbmi {
    /// The capability, if `simd` has it.
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx512Vbmi).then_some(Self(()))
    }

    /// See [`CoarseEngine::step`](super::engine::CoarseEngine).
    pub(super) fn step<const N: usize>(self, tables: &CoarseTables, tiles: &mut [CoarseStep<'_>; N]) {
        check_bounds(tables, tiles);
        // SAFETY: `self` proves AVX-512 F, BW and VBMI; the lengths that the pointers rely on were checked above.
        unsafe {
            match (tables.step.weights, tables.step.bits) {
                (2, 2) => step_avx512::<2, 2, N>(tables, tiles),
                (2, 3) => step_avx512::<2, 3, N>(tables, tiles),
                (2, 4) => step_avx512::<2, 4, N>(tables, tiles),
                (2, _) => step_avx512::<2, 5, N>(tables, tiles),
                (_, 3) => step_avx512::<1, 3, N>(tables, tiles),
                _ => step_avx512::<1, 4, N>(tables, tiles),
            }
        }
    }
}

/// What the vector code relies on.
fn check_bounds(tables: &CoarseTables, tiles: &[CoarseStep<'_>]) {
    let (num_low, step) = (tables.num_low(), tables.step);
    assert!(num_low.is_multiple_of(LANES), "a trellis too small for vectors");
    assert!(matches!((step.weights, step.bits), (2, 2..=5) | (1, 3..=4)), "no step of {step:?}");
    assert_eq!(tables.levels().len(), step.weights << tables.window, "table size");
    for tile in tiles {
        assert!(tile.old.len() >= num_low + LANES && tile.new.len() >= num_low, "cost arrays too short");
    }
}

/// # Safety
/// The machine has AVX2, [`check_bounds`] passed, and the step is of `WEIGHTS` weights and `BITS` bits.
#[target_feature(enable = "avx2")]
unsafe fn step_avx2<const WEIGHTS: usize, const BITS: u32, const N: usize>(
    tables: &CoarseTables,
    tiles: &mut [CoarseStep<'_>; N],
) {
    const HALF: usize = LANES / 2;
    let num_low = tables.num_low();
    let targets: [[__m256i; 2]; N] =
        std::array::from_fn(|i| std::array::from_fn(|w| _mm256_set1_epi8(tiles[i].target[w] as i8)));
    let floors: [__m256i; N] = std::array::from_fn(|i| _mm256_set1_epi8(tiles[i].floor as i8));
    // Lane `i` takes the predecessor cost `i >> k` of the eight loaded.
    let spread: [u8; HALF] = std::array::from_fn(|lane| (lane >> BITS) as u8);
    // SAFETY: an array of 32 bytes.
    let spread = unsafe { _mm256_loadu_si256(spread.as_ptr().cast()) };
    let costs: [[__m256i; 2]; N] = std::array::from_fn(|i| {
        std::array::from_fn(|weight| {
            let near = &tables.costs[128..144];
            let far: [u8; 16];
            let costs = match tiles[i].excess[weight] {
                0 => near,
                excess => {
                    far = std::array::from_fn(|distance| cost(slope(tables.step), excess, distance as u8));
                    &far
                }
            };
            // SAFETY: 16 bytes either way.
            _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(costs.as_ptr().cast()) })
        })
    });
    let farthest = _mm256_set1_epi8(MAX_DISTANCE as i8);
    let mut least = [_mm256_set1_epi8(-1); N];
    for block in (0..num_low).step_by(HALF) {
        // SAFETY: the table holds `LANES` levels for each block, `h` and weight.
        let levels =
            unsafe { tables.levels().as_ptr().add(((block / LANES * LANES) << BITS) * WEIGHTS + block % LANES) };
        let mut best = [_mm256_set1_epi8(-1); N];
        for high in 0..1usize << BITS {
            let from = (high * num_low + block) >> BITS;
            // SAFETY: as above; with one weight a step the second is the first.
            let (first, second) = unsafe {
                let first = levels.add(high * WEIGHTS * LANES);
                let second = first.add((WEIGHTS - 1) * LANES);
                (_mm256_loadu_si256(first.cast()), _mm256_loadu_si256(second.cast()))
            };
            for i in 0..N {
                let cost = |levels, weight: usize| {
                    let distance = _mm256_abs_epi8(_mm256_sub_epi8(levels, targets[i][weight]));
                    _mm256_shuffle_epi8(costs[i][weight], _mm256_min_epu8(distance, farthest))
                };
                let mut sum = cost(first, 0);
                if WEIGHTS == 2 {
                    sum = _mm256_adds_epu8(sum, cost(second, 1));
                }
                // SAFETY: `from` < J, and `LANES` more bytes can be read.
                let old = unsafe { _mm_loadl_epi64(tiles[i].old.as_ptr().add(from).cast()) };
                let old = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(old), spread);
                best[i] = _mm256_min_epu8(best[i], _mm256_adds_epu8(old, sum));
            }
        }
        for i in 0..N {
            let best = _mm256_subs_epu8(best[i], floors[i]);
            least[i] = _mm256_min_epu8(least[i], best);
            // SAFETY: `block + HALF` ≤ J.
            unsafe { _mm256_storeu_si256(tiles[i].new.as_mut_ptr().add(block).cast(), best) };
        }
    }
    for (tile, least) in tiles.iter_mut().zip(least) {
        tile.floor = least_byte(least);
    }
}

/// # Safety
/// The machine has AVX-512 F, BW and VBMI, [`check_bounds`] passed, and the step is of `WEIGHTS` weights and `BITS`
/// bits.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
unsafe fn step_avx512<const WEIGHTS: usize, const BITS: u32, const N: usize>(
    tables: &CoarseTables,
    tiles: &mut [CoarseStep<'_>; N],
) {
    let num_low = tables.num_low();
    // The costs of all levels: two registers of 64 for two weights of fewer than 64 levels, or for one of 128.
    let costs: [[__m512i; 2]; N] = std::array::from_fn(|i| {
        std::array::from_fn(|register| {
            let (weight, first) = if WEIGHTS == 2 { (register, 0) } else { (0, 64 * register) };
            let target = usize::from(tiles[i].target[weight]);
            let near = &tables.costs[128 + first - target..][..64];
            let far: [u8; 64];
            let costs = match tiles[i].excess[weight] {
                0 => near,
                excess => {
                    let distance = |level: usize| (first + level).abs_diff(target).min(MAX_DISTANCE.into()) as u8;
                    far = std::array::from_fn(|level| cost(slope(tables.step), excess, distance(level)));
                    &far
                }
            };
            // SAFETY: 64 bytes either way.
            unsafe { _mm512_loadu_si512(costs.as_ptr().cast()) }
        })
    });
    let floors: [__m512i; N] = std::array::from_fn(|i| _mm512_set1_epi8(tiles[i].floor as i8));
    // Lane `i` takes the predecessor cost `i >> k` of the 64 loaded.
    let spread: [u8; LANES] = std::array::from_fn(|lane| (lane >> BITS) as u8);
    // SAFETY: an array of 64 bytes.
    let spread = unsafe { _mm512_loadu_si512(spread.as_ptr().cast()) };
    let mut least = [_mm512_set1_epi8(-1); N];
    let mut levels = tables.levels().as_ptr();
    for block in (0..num_low).step_by(LANES) {
        let mut best = [_mm512_set1_epi8(-1); N];
        for high in 0..1usize << BITS {
            let from = (high * num_low + block) >> BITS;
            // SAFETY: the block's levels, as laid out by `CoarseTables::new`; with one weight a step the second is the
            // first.
            let (first, second) = unsafe {
                let second = levels.add((WEIGHTS - 1) * LANES);
                (_mm512_loadu_si512(levels.cast()), _mm512_loadu_si512(second.cast()))
            };
            for i in 0..N {
                let sum = if WEIGHTS == 2 {
                    let second = _mm512_permutexvar_epi8(second, costs[i][1]);
                    _mm512_adds_epu8(_mm512_permutexvar_epi8(first, costs[i][0]), second)
                } else {
                    _mm512_permutex2var_epi8(costs[i][0], first, costs[i][1])
                };
                // SAFETY: `from` < J, and `LANES` more bytes can be read.
                let old = unsafe { _mm512_loadu_si512(tiles[i].old.as_ptr().add(from).cast()) };
                let old = _mm512_permutexvar_epi8(spread, old);
                best[i] = _mm512_min_epu8(best[i], _mm512_adds_epu8(old, sum));
            }
            // SAFETY: one past the last block at most.
            levels = unsafe { levels.add(WEIGHTS * LANES) };
        }
        for i in 0..N {
            let best = _mm512_subs_epu8(best[i], floors[i]);
            least[i] = _mm512_min_epu8(least[i], best);
            // SAFETY: `block + LANES` ≤ J.
            unsafe { _mm512_storeu_si512(tiles[i].new.as_mut_ptr().add(block).cast(), best) };
        }
    }
    for (tile, least) in tiles.iter_mut().zip(least) {
        let halves = (_mm512_castsi512_si256(least), _mm512_extracti64x4_epi64::<1>(least));
        tile.floor = least_byte(_mm256_min_epu8(halves.0, halves.1));
    }
}

/// The least of 32 bytes.
#[target_feature(enable = "avx2")]
fn least_byte(bytes: __m256i) -> u8 {
    let bytes = _mm_min_epu8(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
    // The lesser of each pair, as 16-bit numbers.
    let words = _mm_min_epu16(_mm_and_si128(bytes, _mm_set1_epi16(0xFF)), _mm_srli_epi16::<8>(bytes));
    _mm_extract_epi16::<0>(_mm_minpos_epu16(words)) as u8
}
