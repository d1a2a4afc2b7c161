//! The search over a batch of tiles: the seam, the pass forward, and the traceback.

use super::beam::{Candidates, Path, rank, select};
use super::engine::{CoarseEngine, CoarseStep};
use super::tables::CoarseTables;
use super::{BATCH, LANES, MAX_BEAM};
use crate::codec::trellis::TILE_LEN;
use crate::codec::trellis::patterns::Step;
use crate::math::simd::Simd;

/// Steps on each side of the seam in the search for the common state.
const SEAM_STEPS: usize = 24;

/// A search over up to [`BATCH`] tiles at a time, with its scratch.
#[derive(Debug)]
pub(crate) struct CoarseSearch<'a> {
    tables: &'a CoarseTables,
    engine: CoarseEngine,
    simd: Simd,
    beam: usize,
    /// For each tile, the estimates before each step and after the last, `[J]` and `LANES` of padding each.
    history: Vec<Vec<u8>>,
    /// The paths before each step.
    trace: Vec<Path>,
    candidates: Candidates,
}

/// A tile as the search sees it.
struct Target {
    /// In exact units, one entry a step.
    exact: Vec<[i32; 2]>,
}

impl<'a> CoarseSearch<'a> {
    /// A search for tiles of [`TILE_LEN`] weights that keeps `beam` paths.
    pub(crate) fn new(tables: &'a CoarseTables, simd: Simd, beam: usize) -> Self {
        let engine = CoarseEngine::new(tables, simd);
        assert!((1..=MAX_BEAM).contains(&beam), "a beam of {beam}");
        let (bytes, ways) = (history_bytes(tables.step, tables.window), beam << tables.step.bits);
        let candidates = Candidates { keys: vec![0; ways], costs: vec![0; ways] };
        Self { tables, engine, simd, beam, history: vec![vec![0; bytes]; BATCH], trace: Vec::new(), candidates }
    }

    /// Finds windows for the weights of `tiles`, at most [`BATCH`], and writes the `k`-bit chunk of each step.
    pub(crate) fn run(&mut self, tiles: &[[f32; TILE_LEN]], chunks: &mut [[u8; TILE_LEN]]) {
        let targets: Vec<Target> = tiles.iter().map(|tile| self.target(tile)).collect();
        match <[Target; BATCH]>::try_from(targets) {
            Ok(targets) => self.run_together(&targets, chunks),
            Err(targets) => {
                for (target, chunks) in targets.into_iter().zip(chunks) {
                    self.run_together(&[target], std::slice::from_mut(chunks));
                }
            }
        }
    }

    fn target(&self, tile: &[f32; TILE_LEN]) -> Target {
        let exact = |weights: &[f32]| {
            let mut target = [0; 2];
            target.iter_mut().zip(weights).for_each(|(fixed, &weight)| *fixed = self.tables.quantize(weight));
            target
        };
        Target { exact: tile.chunks_exact(self.tables.step.weights).map(exact).collect() }
    }

    fn run_together<const N: usize>(&mut self, targets: &[Target; N], chunks: &mut [[u8; TILE_LEN]]) {
        let steps = TILE_LEN / self.tables.step.weights;
        let side = SEAM_STEPS;
        self.forward(targets, steps - side, 2 * side, None);
        let seams = std::array::from_fn(|tile| self.find_seam(&targets[tile], tile, side));
        self.forward(targets, 0, steps, Some(seams));
        for (tile, (target, chunks)) in targets.iter().zip(chunks).enumerate() {
            self.backward(target, tile, seams[tile], chunks);
        }
    }

    /// Estimates for `count` steps from step `first` on, around the end of the tile; from any state, or from the states
    /// that end in the bits `start`.
    fn forward<const N: usize>(
        &mut self,
        targets: &[Target; N],
        first: usize,
        count: usize,
        start: Option<[usize; N]>,
    ) {
        let (tables, engine) = (self.tables, self.engine);
        let (num_low, stride, bits) = (tables.num_low(), tables.stride(), tables.step.bits as usize);
        for (tile, history) in self.history[..N].iter_mut().enumerate() {
            history[..num_low].fill(if start.is_some() { u8::MAX } else { 0 });
            if let Some(start) = start {
                history[start[tile]] = 0;
            }
        }
        let mut floors = [0; N];
        for i in 0..count {
            let histories: &mut [Vec<u8>; N] = (&mut self.history[..N]).try_into().expect("N ≤ BATCH");
            let mut tile = 0;
            let mut step = histories.each_mut().map(|history| {
                let (old, new) = history[i * stride..].split_at_mut(stride);
                let exact = targets[tile].exact[(first + i) % targets[tile].exact.len()];
                // As long as a start leaves states unreached, they must stay at the largest cost.
                let floor = if start.is_some() && i * bits < num_low.ilog2() as usize { 0 } else { floors[tile] };
                tile += 1;
                let levels = exact.map(|x| tables.level(x));
                CoarseStep { target: levels.map(|x| x.0), excess: levels.map(|x| x.1), floor, old, new }
            });
            engine.step(tables, &mut step);
            floors = step.map(|step| step.floor);
        }
    }

    /// The low bits of the state between the last step and the first, from the estimates around it.
    fn find_seam(&mut self, target: &Target, tile: usize, side: usize) -> usize {
        // Those with the least estimates, the first found before others.
        let mut ends: Vec<(u8, u16)> = Vec::with_capacity(self.beam + 1);
        for (block, estimates) in self.row(tile, 2 * side).chunks(LANES).enumerate() {
            let least = estimates.iter().copied().fold(u8::MAX, u8::min);
            if ends.len() < self.beam || least < ends[self.beam - 1].0 {
                for (lane, &estimate) in estimates.iter().enumerate() {
                    let place = ends.partition_point(|end| end.0 <= estimate);
                    if place < self.beam {
                        ends.insert(place, (estimate, (block * LANES + lane) as u16));
                        ends.truncate(self.beam);
                    }
                }
            }
        }
        self.trace.clear();
        self.trace.extend(ends.iter().map(|&(_, low)| Path { cost: 0, low, chunk: 0, parent: 0 }));
        let mut len = self.trace.len();
        for i in (side..2 * side).rev() {
            len = self.extend(len, target.exact[i - side], tile, i, (0, u32::BITS - 1));
        }
        self.trace[self.trace.len() - len].low.into()
    }

    /// Walks back from the seam to the seam and writes the chunks of the best path.
    fn backward(&mut self, target: &Target, tile: usize, seam: usize, chunks: &mut [u8; TILE_LEN]) {
        let (bits, num_low) = (self.tables.step.bits, self.tables.num_low());
        self.trace.clear();
        self.trace.push(Path { cost: 0, low: seam as u16, chunk: 0, parent: 0 });
        let mut len = 1;
        let mut firsts = [0; TILE_LEN];
        for (i, &exact) in target.exact.iter().enumerate().rev() {
            // Before step `i` a path from the seam still has all but `i` chunks of the seam's bits.
            let chosen = num_low.ilog2().min(i as u32 * bits);
            let start = (seam << chosen) & (num_low - 1);
            len = self.extend(len, exact, tile, i, (start as u32, chosen));
            firsts[i] = self.trace.len() - len;
        }
        let mut place = 0;
        for (chunk, first) in chunks.iter_mut().zip(&firsts[..target.exact.len()]) {
            let path = self.trace[first + place];
            (place, *chunk) = (path.parent.into(), path.chunk);
        }
    }

    /// Appends to the trace the best ways to lead up to its last `len` paths by step `i`, through states whose low bits
    /// agree with `start` from a bit on. Returns how many there are.
    fn extend(&mut self, len: usize, target: [i32; 2], tile: usize, i: usize, start: (u32, u32)) -> usize {
        let (tables, first) = (self.tables, self.trace.len() - len);
        let estimates = &self.history[tile][i * tables.stride()..][..tables.num_low()];
        let (num_low, bits) = (tables.num_low(), tables.step.bits);
        let paths = &self.trace[first..];
        rank(self.simd, tables, paths, target, estimates, start, &mut self.candidates);
        let window = |place: usize| (place & ((1 << bits) - 1)) * num_low + usize::from(paths[place >> bits].low);
        let mut places = [(0, 0); MAX_BEAM];
        let keys = &mut self.candidates.keys[..len << bits];
        let len = select(self.simd, keys, &|place| (window(place) >> bits) as u16, &mut places[..self.beam]);
        let places = &places[..len];
        let cost = |place: u16| self.candidates.costs[usize::from(place)];
        let least = places.iter().map(|&(place, _)| cost(place)).min().unwrap_or(0);
        let path = |&(place, low): &(u16, u16)| Path {
            cost: cost(place) - least,
            low,
            chunk: (window(place.into()) & ((1 << bits) - 1)) as u8,
            parent: (place >> bits) as u8,
        };
        let mut kept = [Path { cost: 0, low: 0, chunk: 0, parent: 0 }; MAX_BEAM];
        kept.iter_mut().zip(places).for_each(|(kept, place)| *kept = path(place));
        self.trace.extend_from_slice(&kept[..len]);
        len
    }

    /// The estimates of `tile` after `i` steps.
    fn row(&self, tile: usize, i: usize) -> &[u8] {
        &self.history[tile][i * self.tables.stride()..][..self.tables.num_low()]
    }
}

/// Bytes of the estimates of one tile.
const fn history_bytes(step: Step, window: u32) -> usize {
    (TILE_LEN / step.weights + 1) * ((1 << (window - step.bits)) + LANES)
}

/// Bytes of a search and its tables.
pub(crate) const fn search_bytes(step: Step, window: u32) -> usize {
    BATCH * history_bytes(step, window) + (step.weights << window) + TILE_LEN * MAX_BEAM * size_of::<Path>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::trellis::patterns::Hash;
    use crate::math::simd::SimdLevel;
    use proptest::prelude::*;

    /// All step kinds.
    const STEPS: [(usize, u32); 6] = [(2, 2), (2, 3), (2, 4), (2, 5), (1, 3), (1, 4)];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Also for weights beyond the patterns' range, and whether tiles are searched together or alone.
        #[test]
        fn every_engine_makes_the_choices_of_the_reference(
            weights in prop::collection::vec(-4f32..4.0, BATCH * TILE_LEN), scale in 0.01f32..30.0,
            kind in 0usize..6, window in 8u32..=11, beam in 1usize..=9
        ) {
            let (per_step, bits) = STEPS[kind];
            let tables = CoarseTables::new(Hash::new(per_step), Step { weights: per_step, bits }, window);
            let weights: Vec<f32> = weights.iter().map(|weight| weight * scale).collect();
            let tiles = weights.as_chunks().0;
            let mut expected = [[0; TILE_LEN]; BATCH];
            for (tile, chunks) in tiles.iter().zip(&mut expected) {
                let mut search = CoarseSearch::new(&tables, Simd::at_most(SimdLevel::Portable), beam);
                search.engine = CoarseEngine::Reference;
                search.run(std::slice::from_ref(tile), std::slice::from_mut(chunks));
            }
            for simd in Simd::available() {
                for together in [1, 3, BATCH] {
                    let mut search = CoarseSearch::new(&tables, simd, beam);
                    let mut chunks = [[0; TILE_LEN]; BATCH];
                    for (tiles, chunks) in tiles.chunks(together).zip(chunks.chunks_mut(together)) {
                        search.run(tiles, chunks);
                    }
                    prop_assert_eq!(chunks, expected, "{:?}, {} together", search.engine, together);
                }
            }
        }

        /// The path that was found is the one that a decoder reads, also across the seam: without a beam's losses, as
        /// the beam holds all states of the smallest trellis, no chunk changed alone makes it better.
        #[test]
        fn no_other_chunk_is_better_where_the_beam_holds_all_states(
            weights in prop::collection::vec(-3f32..3.0, TILE_LEN), step in 0usize..128
        ) {
            let tables = CoarseTables::new(Hash::new(2), Step { weights: 2, bits: 4 }, 8);
            let tile: &[f32; TILE_LEN] = weights.first_chunk().unwrap();
            let mut search = CoarseSearch::new(&tables, Simd::detect(), 16);
            let mut chunks = [0; TILE_LEN];
            search.run(std::slice::from_ref(tile), std::slice::from_mut(&mut chunks));
            let target = search.target(tile);
            let error = |chunks: &[u8; TILE_LEN]| -> u32 {
                let window = |t: usize| u32::from(chunks[(t + 127) % 128]) << 4 | u32::from(chunks[t]);
                (0..128).map(|t| tables.distance::<2>(target.exact[t], window(t))).sum()
            };
            // The seam is fixed before, by the steps around it alone.
            prop_assume!(step != 127);
            let found = error(&chunks);
            for chunk in 0..16 {
                let mut other = chunks;
                other[step] = chunk;
                prop_assert!(error(&other) >= found, "step {}: {}", step, chunk);
            }
        }
    }
}
