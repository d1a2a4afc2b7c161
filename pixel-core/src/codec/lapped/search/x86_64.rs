//! The steps of [`beam`](super::beam) in vector instructions: the same whole numbers.

use super::beam::Ways;
use super::steps::{Lanes, MAX_HOP, PerPattern, REACH, Step};
use crate::codec::nibble::PATTERNS;
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Proof that AVX2 may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx2).then_some(Self(()))
    }

    pub(super) fn costs(self, step: &Step, residuals: &[Lanes], energies: &[i32], costs: &mut [PerPattern]) -> i32 {
        // SAFETY: `self` proves AVX2.
        unsafe { costs_avx2(step, residuals, energies, costs) }
    }

    pub(super) fn choose(self, costs: &[PerPattern], limit: i32, ways: &mut Ways) -> usize {
        // SAFETY: as above.
        unsafe { choose_avx2(costs, limit, ways) }
    }
}

#[target_feature(enable = "avx2")]
fn costs_avx2(step: &Step, residuals: &[Lanes], energies: &[i32], costs: &mut [PerPattern]) -> i32 {
    let halves = |numbers: *const __m256i| {
        // SAFETY: both callers point at 64 aligned bytes.
        unsafe { [_mm256_load_si256(numbers), _mm256_load_si256(numbers.add(1))] }
    };
    let constants = halves(step.energies.0.as_ptr().cast());
    let mut least = _mm256_set1_epi32(i32::MAX);
    for ((residuals, energy), costs) in residuals.iter().zip(energies).zip(costs) {
        let energy = _mm256_set1_epi32(*energy);
        let mut sums = constants.map(|half| _mm256_add_epi32(half, energy));
        for (pair, products) in residuals.0.as_chunks::<2>().0.iter().zip(&step.products[..step.num_pairs]) {
            let pair = _mm256_set1_epi32(i32::from_ne_bytes(bytemuck::cast(*pair)));
            let products = halves(products.0.as_ptr().cast());
            for (sum, products) in sums.iter_mut().zip(products) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(products, pair));
            }
        }
        for (half, sum) in sums.into_iter().enumerate() {
            least = _mm256_min_epi32(least, sum);
            // SAFETY: 64 aligned bytes.
            unsafe { _mm256_store_si256(costs.0.as_mut_ptr().cast::<__m256i>().add(half), sum) };
        }
    }
    let mut lanes = [0; 8];
    // SAFETY: 32 bytes.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), least) };
    lanes.into_iter().min().unwrap_or(i32::MAX)
}

#[target_feature(enable = "avx2")]
fn choose_avx2(costs: &[PerPattern], limit: i32, ways: &mut Ways) -> usize {
    let limit = _mm256_set1_epi32(limit);
    let mut count = 0;
    for (path, costs) in costs.iter().enumerate() {
        let above = |half: usize| {
            // SAFETY: 64 aligned bytes.
            let values = unsafe { _mm256_load_si256(costs.0.as_ptr().cast::<__m256i>().add(half)) };
            _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(values, limit)))
        };
        let mut chosen = !(above(0) | above(1) << 8) as u16;
        while chosen != 0 {
            let code = chosen.trailing_zeros() as usize;
            ways.links[count] = (path * PATTERNS + code) as u16;
            count += 1;
            chosen &= chosen - 1;
        }
        if count >= ways.capacity {
            return ways.capacity;
        }
    }
    count
}

/// Proof that AVX-512 with VNNI and VBMI2 may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512Vnni(());

impl Avx512Vnni {
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx512Vbmi).then_some(Self(()))
    }

    pub(super) fn enter(self, step: &Step, residuals: &mut [Lanes], costs: &[i32], least: i32, energies: &mut [i32]) {
        type Enter = unsafe fn(&Step, &mut [Lanes], &[i32], i32, &mut [i32]);
        let enter: Enter = match step.feedback.len() {
            0 => enter_avx512::<0>,
            1 => enter_avx512::<1>,
            2 => enter_avx512::<2>,
            3 => enter_avx512::<3>,
            _ => enter_avx512::<MAX_HOP>,
        };
        // SAFETY: `self` proves the instructions.
        unsafe { enter(step, residuals, costs, least, energies) }
    }

    pub(super) fn costs(self, step: &Step, residuals: &[Lanes], energies: &[i32], costs: &mut [PerPattern]) -> i32 {
        type Costs = unsafe fn(&Step, &[Lanes], &[i32], &mut [PerPattern]) -> i32;
        // Products beyond the pairs that count are zero.
        let all: Costs = match step.num_pairs {
            0..=4 => costs_avx512::<4>,
            5..=6 => costs_avx512::<6>,
            7..=8 => costs_avx512::<8>,
            9..=12 => costs_avx512::<12>,
            _ => costs_avx512::<{ REACH / 2 }>,
        };
        // SAFETY: `self` proves the instructions.
        unsafe { all(step, residuals, energies, costs) }
    }

    pub(super) fn choose(self, costs: &[PerPattern], limit: i32, ways: &mut Ways) -> usize {
        // SAFETY: `self` proves the instructions.
        unsafe { choose_avx512(costs, limit, ways) }
    }

    pub(super) fn extend(
        self,
        step: &Step,
        residuals: &[Lanes],
        ways: (&[u16], &[PerPattern]),
        incoming: &Lanes,
        left: (&mut [Lanes], &mut [i32]),
    ) {
        // SAFETY: `self` proves the instructions.
        unsafe { extend_avx512(step, residuals, ways, incoming, left) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn load(lanes: &Lanes) -> __m512i {
    // SAFETY: 64 aligned bytes.
    unsafe { _mm512_load_si512(lanes.0.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn store(lanes: &mut Lanes, values: __m512i) {
    // SAFETY: 64 aligned bytes.
    unsafe { _mm512_store_si512(lanes.0.as_mut_ptr().cast(), values) };
}

/// `Σ (value · root)²`.
#[target_feature(enable = "avx512f,avx512bw")]
fn sum_of_squares(values: __m512i, roots: __m512i) -> i32 {
    let products = _mm512_mulhrs_epi16(values, roots);
    _mm512_reduce_add_epi32(_mm512_madd_epi16(products, products))
}

#[target_feature(enable = "avx512f,avx512bw")]
fn enter_avx512<const HOP: usize>(
    step: &Step,
    residuals: &mut [Lanes],
    costs: &[i32],
    least: i32,
    energies: &mut [i32],
) {
    let all = load(&step.all);
    let mut feedback = [_mm512_setzero_si512(); HOP];
    feedback.iter_mut().zip(&step.feedback).for_each(|(factors, lanes)| *factors = load(lanes));
    for ((residuals, cost), energy) in residuals.iter_mut().zip(costs).zip(energies) {
        let mut values = load(residuals);
        for (k, factors) in feedback.iter().enumerate() {
            let first = _mm512_castsi512_si128(values);
            let settled = _mm512_broadcastw_epi16(match k {
                0 => first,
                1 => _mm_srli_si128::<2>(first),
                2 => _mm_srli_si128::<4>(first),
                _ => _mm_srli_si128::<6>(first),
            });
            values = _mm512_adds_epi16(values, _mm512_mulhrs_epi16(settled, *factors));
        }
        if HOP > 0 {
            store(residuals, values);
        }
        *energy = cost.wrapping_sub(least).wrapping_add(sum_of_squares(values, all));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn costs_avx512<const PAIRS: usize>(
    step: &Step,
    residuals: &[Lanes],
    energies: &[i32],
    costs: &mut [PerPattern],
) -> i32 {
    let mut products = [_mm512_setzero_si512(); PAIRS];
    for (products, pair) in products.iter_mut().zip(&step.products) {
        // SAFETY: 64 aligned bytes.
        *products = unsafe { _mm512_load_si512(pair.0.as_ptr().cast()) };
    }
    // SAFETY: 64 aligned bytes.
    let constants = unsafe { _mm512_load_si512(step.energies.0.as_ptr().cast()) };
    let mut least = _mm512_set1_epi32(i32::MAX);
    for ((residuals, energy), costs) in residuals.iter().zip(energies).zip(costs) {
        let pairs: &[i32; REACH / 2] = bytemuck::cast_ref(&residuals.0);
        // Two sums, so that one product need not wait for the other.
        let mut even = _mm512_add_epi32(constants, _mm512_set1_epi32(*energy));
        let mut odd = _mm512_setzero_si512();
        for (products, pair) in products.as_chunks::<2>().0.iter().zip(pairs.as_chunks::<2>().0) {
            even = _mm512_dpwssd_epi32(even, products[0], _mm512_set1_epi32(pair[0]));
            odd = _mm512_dpwssd_epi32(odd, products[1], _mm512_set1_epi32(pair[1]));
        }
        let sums = _mm512_add_epi32(even, odd);
        least = _mm512_min_epi32(least, sums);
        // SAFETY: 64 aligned bytes.
        unsafe { _mm512_store_si512(costs.0.as_mut_ptr().cast(), sums) };
    }
    _mm512_reduce_min_epi32(least)
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi2")]
fn choose_avx512(costs: &[PerPattern], limit: i32, ways: &mut Ways) -> usize {
    let limit = _mm512_set1_epi32(limit);
    let codes = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let mut count = 0;
    for (path, costs) in costs.iter().enumerate() {
        // SAFETY: 64 aligned bytes.
        let costs = unsafe { _mm512_load_si512(costs.0.as_ptr().cast()) };
        let chosen = _mm512_cmple_epi32_mask(costs, limit);
        let links = _mm256_add_epi16(codes, _mm256_set1_epi16((path * PATTERNS) as i16));
        let places = &mut ways.links[count..][..PATTERNS];
        // SAFETY: sixteen places.
        unsafe { _mm256_storeu_si256(places.as_mut_ptr().cast(), _mm256_maskz_compress_epi16(chosen, links)) };
        count += chosen.count_ones() as usize;
        if count >= ways.capacity {
            return ways.capacity;
        }
    }
    count
}

#[target_feature(enable = "avx512f,avx512bw")]
fn extend_avx512(
    step: &Step,
    residuals: &[Lanes],
    ways: (&[u16], &[PerPattern]),
    incoming: &Lanes,
    left: (&mut [Lanes], &mut [i32]),
) {
    let places = Lanes(std::array::from_fn(|h| ((h + step.hop) % REACH) as i16));
    let (places, kept) = (load(&places), u32::MAX >> step.hop);
    let (incoming, ahead) = (load(incoming), load(&step.ahead));
    for (link, (next, rest)) in ways.0.iter().zip(left.0.iter_mut().zip(left.1)) {
        let (path, code) = (usize::from(*link) / PATTERNS, usize::from(*link) % PATTERNS);
        let cost = ways.1[path].0[code];
        let values = _mm512_subs_epi16(load(&residuals[path]), load(&step.patterns[code]));
        *rest = cost.wrapping_sub(sum_of_squares(values, ahead));
        store(next, _mm512_mask_permutexvar_epi16(incoming, kept, places, values));
    }
}
