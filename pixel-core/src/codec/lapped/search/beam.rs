//! One nibble of all paths: what every way on costs, the best of them, and what they leave.
//!
//! All numbers are whole, so that every vector level chooses the same. What compilers do not find is written by hand in
//! `x86_64.rs`.

use super::steps::{Lanes, PerPattern, REACH, Step};
#[cfg(target_arch = "x86_64")]
use super::x86_64::{Avx2, Avx512Vnni};
use crate::codec::nibble::PATTERNS;
use crate::math::simd::{Simd, for_every_level};

/// Ways on: `16·path + code`, the place of the way among the costs of all.
#[derive(Debug)]
pub(super) struct Ways {
    /// 16 places more than are ever used, so that a whole vector may be written at any of those.
    pub(super) links: Vec<u16>,
    pub(super) capacity: usize,
}

impl Ways {
    pub(super) fn new(capacity: usize) -> Self {
        Self { links: vec![0; capacity + PATTERNS], capacity }
    }
}

/// `a·b / 2¹⁵`, rounded as the vector instruction does.
#[inline(always)]
fn scaled(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b) + (1 << 14)) >> 15) as i16
}

/// Feeds back the residuals in the columns that `step` settles, as if its pattern were zero, and adds to what the paths
/// cost, less `least`, what their residuals do.
pub(super) fn enter(simd: Simd, step: &Step, residuals: &mut [Lanes], costs: &[i32], least: i32, energies: &mut [i32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = Avx512Vnni::new(simd) {
        return avx512.enter(step, residuals, costs, least, energies);
    }
    enter_portable(simd, step, residuals, costs, least, energies);
}

for_every_level! {
    fn enter_portable(step: &Step, residuals: &mut [Lanes], costs: &[i32], least: i32, energies: &mut [i32]) {
        for ((residuals, cost), energy) in residuals.iter_mut().zip(costs).zip(energies) {
            for (k, factors) in step.feedback.iter().enumerate() {
                let residual = residuals.0[k];
                for (value, factor) in residuals.0.iter_mut().zip(&factors.0) {
                    *value = value.saturating_add(scaled(residual, *factor));
                }
            }
            *energy = cost.wrapping_sub(least).wrapping_add(sum_of_squares(residuals, &step.all));
        }
    }
}

/// `Σ (value · root)²`.
#[inline(always)]
fn sum_of_squares(values: &Lanes, roots: &Lanes) -> i32 {
    let mut sum = 0i32;
    for (value, root) in values.0.iter().zip(&roots.0) {
        let product = i32::from(scaled(*value, *root));
        sum = sum.wrapping_add(product * product);
    }
    sum
}

/// What every way on costs, `[paths, 16]`, and the least of that.
pub(super) fn costs(simd: Simd, step: &Step, residuals: &[Lanes], energies: &[i32], costs: &mut [PerPattern]) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = Avx512Vnni::new(simd) {
        return avx512.costs(step, residuals, energies, costs);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Avx2::new(simd) {
        return avx2.costs(step, residuals, energies, costs);
    }
    costs_portable(simd, step, residuals, energies, costs)
}

for_every_level! {
    fn costs_portable(step: &Step, residuals: &[Lanes], energies: &[i32], costs: &mut [PerPattern]) -> i32 {
        let mut least = [i32::MAX; PATTERNS];
        for ((residuals, energy), costs) in residuals.iter().zip(energies).zip(costs) {
            let mut sums = step.energies.0.map(|of_pattern| of_pattern.wrapping_add(*energy));
            for (pair, products) in residuals.0.as_chunks::<2>().0.iter().zip(&step.products[..step.num_pairs]) {
                let pair = pair.map(i32::from);
                for (sum, product) in sums.iter_mut().zip(&products.0) {
                    let both = pair[0] * i32::from(product[0]) + pair[1] * i32::from(product[1]);
                    *sum = sum.wrapping_add(both);
                }
            }
            for (least, sum) in least.iter_mut().zip(sums) {
                *least = sum.min(*least);
            }
            costs.0 = sums;
        }
        least.into_iter().min().unwrap_or(i32::MAX)
    }
}

for_every_level! {
    /// How many costs are at most each of four limits, in every `stride`-th path.
    fn count(costs: &[PerPattern], stride: usize, limits: &[i32; 4]) -> [usize; 4] {
        let [a, b, c, d] = *limits;
        let mut counts = [[0i32; PATTERNS]; 4];
        for costs in costs.chunks(stride) {
            let costs = &costs[0].0;
            // One loop for each limit: the compiler makes one comparison and one subtraction of each.
            for i in 0..PATTERNS { counts[0][i] += i32::from(costs[i] <= a); }
            for i in 0..PATTERNS { counts[1][i] += i32::from(costs[i] <= b); }
            for i in 0..PATTERNS { counts[2][i] += i32::from(costs[i] <= c); }
            for i in 0..PATTERNS { counts[3][i] += i32::from(costs[i] <= d); }
        }
        counts.map(|lanes| lanes.into_iter().sum::<i32>() as usize)
    }
}

/// Paths from which on a fourth of them says where the limit lies.
const SAMPLED: usize = 128;

/// The narrowest gap.
const NARROW: i32 = 8;

/// A cost that about `beam` of all ways on do not exceed. `gap` is how far above the least one the last one was, and
/// this one is: four limits around it say where between two of them it lies now.
pub(super) fn limit(simd: Simd, costs: &[PerPattern], beam: usize, least: i32, gap: &mut i32) -> i32 {
    if costs.len() * PATTERNS <= beam {
        return i32::MAX;
    }
    let stride = if costs.len() >= SAMPLED { 4 } else { 1 };
    let wanted = beam * costs.len().div_ceil(stride) / costs.len();
    let above = |gap: i64| (i64::from(least) + gap).min(i64::from(i32::MAX)) as i32;
    let (low, high) = loop {
        let wide = i64::from(*gap);
        let limits = [wide * 3 / 4, wide * 7 / 8, wide, wide * 5 / 4].map(above);
        let counts = count(simd, costs, stride, &limits);
        match counts.iter().position(|&count| count > wanted) {
            Some(0) if *gap > NARROW => *gap = *gap / 4 * 3,
            Some(0) => break ((least, 0), (limits[0], counts[0])),
            Some(i) => break ((limits[i - 1], counts[i - 1]), (limits[i], counts[i])),
            None if *gap > i32::MAX / 2 => return i32::MAX,
            None => *gap += *gap / 2,
        }
    };
    let width = i64::from(high.0) - i64::from(low.0);
    let missing = (wanted - low.1) as i64 * width / (high.1 - low.1) as i64;
    let limit = (i64::from(low.0) + missing) as i32;
    *gap = limit.saturating_sub(least).max(NARROW);
    limit
}

/// The ways on that cost at most `limit`, path by path, as many as there is room for; returns how many.
pub(super) fn choose(simd: Simd, costs: &[PerPattern], limit: i32, ways: &mut Ways) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = Avx512Vnni::new(simd) {
        return avx512.choose(costs, limit, ways);
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Avx2::new(simd) {
        return avx2.choose(costs, limit, ways);
    }
    let mut count = 0;
    for (path, costs) in costs.iter().enumerate() {
        for (code, &cost) in costs.0.iter().enumerate() {
            ways.links[count] = (path * PATTERNS + code) as u16;
            count += usize::from(cost <= limit);
        }
        if count >= ways.capacity {
            return ways.capacity;
        }
    }
    count
}

/// What the ways `links`, of all those with `costs`, leave: residuals from the next nibble's first column on, with
/// those of `incoming` at the end, and costs without what the columns ahead count in them.
pub(super) fn extend(
    simd: Simd,
    step: &Step,
    residuals: &[Lanes],
    (links, costs): (&[u16], &[PerPattern]),
    incoming: &Lanes,
    left: (&mut [Lanes], &mut [i32]),
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(avx512) = Avx512Vnni::new(simd) {
        return avx512.extend(step, residuals, (links, costs), incoming, left);
    }
    extend_portable(simd, step, residuals, (links, costs), incoming, left);
}

for_every_level! {
    fn extend_portable(
        step: &Step,
        residuals: &[Lanes],
        ways: (&[u16], &[PerPattern]),
        incoming: &Lanes,
        left: (&mut [Lanes], &mut [i32]),
    ) {
        for (link, (next, rest)) in ways.0.iter().zip(left.0.iter_mut().zip(left.1)) {
            let (path, code) = (usize::from(*link) / PATTERNS, usize::from(*link) % PATTERNS);
            let cost = ways.1[path].0[code];
            let mut values = Lanes::ZERO;
            for ((value, residual), taken) in
                values.0.iter_mut().zip(&residuals[path].0).zip(&step.patterns[code].0)
            {
                *value = residual.saturating_sub(*taken);
            }
            *rest = cost.wrapping_sub(sum_of_squares(&values, &step.ahead));
            *next = *incoming;
            next.0[..REACH - step.hop].copy_from_slice(&values.0[step.hop..]);
        }
    }
}
