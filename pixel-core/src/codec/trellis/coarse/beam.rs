//! The paths of the traceback: how the ways to lead up to them are ranked, and which are kept.

use super::tables::CoarseTables;
use crate::math::simd::for_every_level;

/// A path back from the end of a tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Path {
    /// Exact cost of its steps, less that of the best path.
    pub(super) cost: u32,
    /// The low bits of the state before its first step.
    pub(super) low: u16,
    /// The chunk of its first step.
    pub(super) chunk: u8,
    /// Which path it continues.
    pub(super) parent: u8,
}

/// The ways to lead up to paths by one step: those of path `p` at `[p << k, (p + 1) << k)`.
#[derive(Debug)]
pub(super) struct Candidates {
    /// What they are ranked by, exact cost and estimate, above [`INDEX_BITS`] bits of their place.
    pub(super) keys: Vec<u32>,
    /// The exact costs.
    pub(super) costs: Vec<u32>,
}

/// Bits of a place among [`MAX_BEAM`](super::MAX_BEAM) paths of 32 predecessors each.
const INDEX_BITS: u32 = 11;

/// The largest rank; an estimate of 255 at 2 bits is just above.
const MAX_RANK: u32 = u32::MAX >> INDEX_BITS;

for_every_level! {
    /// Ranks all ways to lead up to `paths` through states whose low bits agree with `start` from bit `chosen` on.
    pub(super) fn rank(
        tables: &CoarseTables,
        paths: &[Path],
        target: [i32; 2],
        estimates: &[u8],
        start: (u32, u32),
        candidates: &mut Candidates,
    ) {
        match (tables.step.weights, tables.step.bits) {
            (2, 2) => rank_body::<2, 4>(tables, paths, target, estimates, start, candidates),
            (2, 3) => rank_body::<2, 8>(tables, paths, target, estimates, start, candidates),
            (2, 4) => rank_body::<2, 16>(tables, paths, target, estimates, start, candidates),
            (2, _) => rank_body::<2, 32>(tables, paths, target, estimates, start, candidates),
            (_, 3) => rank_body::<1, 8>(tables, paths, target, estimates, start, candidates),
            _ => rank_body::<1, 16>(tables, paths, target, estimates, start, candidates),
        }
    }
}

/// `WEIGHTS` a step, `WAYS` predecessors of a state.
#[inline(always)]
fn rank_body<const WEIGHTS: usize, const WAYS: usize>(
    tables: &CoarseTables,
    paths: &[Path],
    target: [i32; 2],
    estimates: &[u8],
    (start, chosen): (u32, u32),
    candidates: &mut Candidates,
) {
    let num_low = tables.num_low() as u32;
    let keys = candidates.keys.as_chunks_mut::<WAYS>().0;
    let costs = candidates.costs.as_chunks_mut::<WAYS>().0;
    for (parent, ((path, keys), costs)) in paths.iter().zip(keys).zip(costs).enumerate() {
        // Loops, not `map`: the compiler does not always inline that here.
        let (mut windows, mut guesses) = ([0; WAYS], [0; WAYS]);
        for (high, (window, guess)) in windows.iter_mut().zip(&mut guesses).enumerate() {
            *window = high as u32 * num_low + u32::from(path.low);
            *guess = estimates[(*window >> WAYS.ilog2()) as usize];
        }
        for way in 0..WAYS {
            let cost = path.cost.saturating_add(tables.distance::<WEIGHTS>(target, windows[way]));
            let rank = cost.saturating_add(u32::from(guesses[way]) * tables.unit).min(MAX_RANK);
            let key = rank << INDEX_BITS | (parent * WAYS + way) as u32;
            let low = windows[way] >> WAYS.ilog2();
            costs[way] = cost;
            keys[way] = if (low ^ start) >> chosen == 0 { key } else { u32::MAX };
        }
    }
}

for_every_level! {
    /// Moves the least keys into `places`, in order, of those that lead to the same state only the least, until
    /// `places` is full.
    pub(super) fn select(keys: &mut [u32], low: &dyn Fn(usize) -> u16, places: &mut [(u16, u16)]) -> usize {
        let mut len = 0;
        while len < places.len() {
            let least = keys.iter().copied().fold(u32::MAX, u32::min);
            if least == u32::MAX {
                break;
            }
            let place = (least & ((1 << INDEX_BITS) - 1)) as usize;
            keys[place] = u32::MAX;
            let low = low(place);
            if places[..len].iter().all(|&(_, kept)| kept != low) {
                places[len] = (place as u16, low);
                len += 1;
            }
        }
        len
    }
}
