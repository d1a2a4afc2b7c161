//! One step of the pass over all states, in the forms that machines are fast at.

use super::LANES;
use super::tables::{CoarseTables, MAX_DISTANCE, cost, slope};
#[cfg(target_arch = "x86_64")]
use super::x86_64::{Avx2, Avx512Vbmi};
use crate::math::simd::{Simd, SimdLevel};

/// How a step is computed. All make the same choices.
#[derive(Debug, Clone, Copy)]
pub(super) enum CoarseEngine {
    /// The definition, for any trellis.
    Reference,
    /// Blocks of [`LANES`] states in safe code, for any machine.
    Portable,
    /// 256-bit integers.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// 512-bit integers and shuffles of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512Vbmi(Avx512Vbmi),
}

impl CoarseEngine {
    /// The fastest that this trellis and `simd` allow.
    pub(super) fn new(tables: &CoarseTables, simd: Simd) -> Self {
        if tables.num_low() < LANES {
            return Self::Reference;
        }
        match simd.level() {
            SimdLevel::Portable => Self::Portable,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 | SimdLevel::Avx512 => Avx2::new(simd).map_or(Self::Portable, Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Vbmi => Avx512Vbmi::new(simd).map_or(Self::Portable, Self::Avx512Vbmi),
            #[cfg(not(target_arch = "x86_64"))]
            _ => Self::Portable,
        }
    }

    /// One step of `N` tiles: fills each `new` from `old`, both `[J]` and `old` followed by `LANES` values that may be
    /// read but do not count; subtracts `floor` from every cost and leaves the least of `new` in its place.
    pub(super) fn step<const N: usize>(self, tables: &CoarseTables, tiles: &mut [CoarseStep<'_>; N]) {
        match self {
            Self::Reference => tiles.iter_mut().for_each(|tile| step_reference(tables, tile)),
            Self::Portable => tiles.iter_mut().for_each(|tile| match (tables.step.weights, tables.step.bits) {
                (2, 2) => step_portable::<2, 2>(tables, tile),
                (2, 3) => step_portable::<2, 3>(tables, tile),
                (2, 4) => step_portable::<2, 4>(tables, tile),
                (2, 5) => step_portable::<2, 5>(tables, tile),
                (1, 3) => step_portable::<1, 3>(tables, tile),
                (1, 4) => step_portable::<1, 4>(tables, tile),
                _ => step_reference(tables, tile),
            }),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.step(tables, tiles),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vbmi(avx512) => avx512.step(tables, tiles),
        }
    }
}

/// One step of one tile.
pub(super) struct CoarseStep<'a> {
    /// The levels next to the weights.
    pub(super) target: [u8; 2],
    /// For a weight that is `e` levels beyond the last, thirty-seconds of `2·e·slope`: what `(d + e)²` has over `d²`.
    pub(super) excess: [u16; 2],
    /// What is subtracted from every cost; then the least.
    pub(super) floor: u8,
    /// The estimates before the step.
    pub(super) old: &'a [u8],
    /// And after it.
    pub(super) new: &'a mut [u8],
}

fn step_reference(tables: &CoarseTables, tile: &mut CoarseStep<'_>) {
    let (num_low, bits, weights) = (tables.num_low(), tables.step.bits, tables.step.weights);
    let lanes = num_low.min(LANES);
    for low in 0..num_low {
        let mut best = u8::MAX;
        for high in 0..1usize << bits {
            let first = (((low / lanes) << bits) + high) * weights * lanes + low % lanes;
            let cost = (0..weights).fold(0u8, |cost, weight| {
                let distance = tile.target[weight].abs_diff(tables.levels()[first + weight * lanes]);
                let slope = slope(tables.step);
                cost.saturating_add(self::cost(slope, tile.excess[weight], distance.min(MAX_DISTANCE)))
            });
            best = best.min(tile.old[(high * num_low + low) >> bits].saturating_add(cost));
        }
        tile.new[low] = best.saturating_sub(tile.floor);
    }
    tile.floor = tile.new[..num_low].iter().copied().fold(u8::MAX, u8::min);
}

/// The same over blocks of [`LANES`] states, in a form that compilers turn into vector code.
fn step_portable<const WEIGHTS: usize, const BITS: u32>(tables: &CoarseTables, tile: &mut CoarseStep<'_>) {
    let num_low = tables.num_low();
    let slope = slope(tables.step);
    let mut least = [u8::MAX; LANES];
    let blocks = tables.levels().chunks_exact((WEIGHTS * LANES) << BITS);
    for (block, (table, new)) in blocks.zip(tile.new.chunks_exact_mut(LANES)).enumerate() {
        let mut best = [u8::MAX; LANES];
        for (high, levels) in table.chunks_exact(WEIGHTS * LANES).enumerate() {
            let from = (high * num_low + block * LANES) >> BITS;
            let old: &[u8; LANES] = tile.old[from..].first_chunk().expect("padded by LANES");
            let mut sums = [0u8; LANES];
            for (weight, levels) in levels.as_chunks::<LANES>().0.iter().enumerate() {
                let (target, excess) = (tile.target[weight], tile.excess[weight]);
                for (sum, level) in sums.iter_mut().zip(levels) {
                    *sum = sum.saturating_add(cost(slope, excess, target.abs_diff(*level).min(MAX_DISTANCE)));
                }
            }
            for lane in 0..LANES {
                best[lane] = best[lane].min(old[lane >> BITS].saturating_add(sums[lane]));
            }
        }
        for lane in 0..LANES {
            new[lane] = best[lane].saturating_sub(tile.floor);
            least[lane] = least[lane].min(new[lane]);
        }
    }
    tile.floor = least.into_iter().fold(u8::MAX, u8::min);
}
