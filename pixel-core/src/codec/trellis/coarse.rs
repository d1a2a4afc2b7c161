//! A faster search: coarse costs on the way forth, a beam with exact costs on the way back.
//!
//! The [exhaustive search](super::viterbi) spends its time on costs that the way back hardly reads. Here the pass over all states keeps 8-bit estimates, 64 states to a register: a pattern is known to one of
//! at most 128 levels, and the cost of a weight is a function of the distance in levels, 0 to 15. The way back then
//! follows not one path but the `beam` best, which it ranks by their exact cost so far plus the estimate of what leads
//! up to them; so it finds again nearly all that the estimates lost.
//!
//! Four tiles go together, since their steps read the same tables. Everything is integers: all engines and any
//! grouping of tiles make the same choices.
//!
//! Sources: the estimates are the heuristic of an A* search (Hart, Nilsson and Raphael, 1968), the way back is an M
//! algorithm (Anderson and Mohan, *Sequential coding algorithms*, 1984). An M algorithm alone, without estimates of
//! the rest, needs 1024 states for 1 % more error at 2 bits and 2 % at 3 and 4, and is then no faster than the exhaustive
//! search; with 256 states it loses 6, 10 and 8 %.

use super::TILE_LEN;
use super::patterns::{Hash, Step};
use crate::simd::{Simd, SimdLevel, for_every_level};

/// States that a vector step handles together; tables are blocked by it.
pub(super) const LANES: usize = 64;

/// Tiles that are searched together.
pub(super) const BATCH: usize = 4;

/// The most paths that the way back follows.
pub(super) const MAX_BEAM: usize = 64;

/// The largest distance in levels that costs more than the next smaller.
pub(super) const MAX_DISTANCE: u8 = 15;

/// Exact units in a level.
const LEVEL: u32 = 32;

/// Steps on each side of the seam in the search for the common state.
const SEAM_STEPS: usize = 24;

/// Levels of all windows and what they cost.
#[derive(Debug)]
pub(super) struct CoarseTables {
    /// Window bits, `L`.
    pub(super) window: u32,
    /// The step.
    pub(super) step: Step,
    hash: Hash,
    /// For each block of `LANES` low values and each `h`: the levels of the first weights, then, if there are two
    /// weights a step, those of the second, for the windows `h·J + j`.
    stored: Vec<u8>,
    /// Where they begin.
    first: usize,
    /// The costs of a weight that is not beyond the last level, by `level − target + 128`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "vector code looks them up"))]
    pub(super) costs: [u8; 256],
    /// What one unit of `costs` is in exact units.
    unit: u32,
    /// Exact units in an integer of the hash.
    scale: i32,
}

impl CoarseTables {
    /// Tables for a trellis of `window` bits.
    pub(super) fn new(hash: Hash, step: Step, window: u32) -> Self {
        let slope = slope(step);
        let costs = std::array::from_fn(|place| cost(slope, 0, place.abs_diff(128).min(15) as u8));
        let num_low = 1usize << (window - step.bits);
        let lanes = num_low.min(LANES);
        // Vectors of 64 bytes are read faster where they lie in one cache line.
        let mut stored: Vec<u8> = Vec::with_capacity((step.weights << window) + 64);
        let first = stored.as_ptr().align_offset(64).min(63);
        stored.resize(first, 0);
        for block in (0..num_low).step_by(lanes) {
            for high in 0..1usize << step.bits {
                for weight in 0..step.weights {
                    stored.extend((block..block + lanes).map(|low| {
                        let integer = hash.integers((high * num_low + low) as u32)[weight];
                        ((integer + offset(step)) / integers_per_level(step)) as u8
                    }));
                }
            }
        }
        Self {
            window,
            step,
            hash,
            stored,
            first,
            costs,
            unit: LEVEL * LEVEL * 32 / u32::from(slope),
            scale: LEVEL as i32 / integers_per_level(step),
        }
    }

    /// The table.
    pub(super) fn levels(&self) -> &[u8] {
        &self.stored[self.first..]
    }

    /// The number of values of the low bits, `J`.
    pub(super) const fn num_low(&self) -> usize {
        1 << (self.window - self.step.bits)
    }

    /// Bytes of a row of estimates: `J`, and those that vectors read beyond.
    const fn stride(&self) -> usize {
        self.num_low() + LANES
    }

    /// A weight in exact units. What lies far beyond the extreme patterns is moved.
    fn quantize(&self, x: f32) -> i32 {
        let bound = (2 * offset(self.step) * self.scale) as f32;
        (x / self.hash.unit() * self.scale as f32).round().clamp(-bound, bound) as i32
    }

    /// The level next to a weight in exact units, and by how much the weight is beyond the middle of the last one, in
    /// [`CoarseStep::excess`].
    fn level(&self, x: i32) -> (u8, u16) {
        let (offset, width) = (offset(self.step), integers_per_level(self.step));
        let (unit, slope) = (LEVEL as i32, i32::from(slope(self.step)));
        let (first, last) = ((width - 1) * self.scale / 2 - offset * self.scale, 2 * offset / width);
        let last = last.min(127);
        let level = ((x - first + unit / 2) >> LEVEL.ilog2()).clamp(0, last);
        let beyond = (x - (first + last * unit)).max(first - x).max(0);
        (level as u8, (2 * beyond * slope / unit).min(4000) as u16)
    }

    /// The exact cost of `target` at window `s`.
    #[inline(always)]
    fn distance<const WEIGHTS: usize>(&self, target: [i32; 2], s: u32) -> u32 {
        let [first, second] = self.hash.integers_of::<WEIGHTS>(s);
        if WEIGHTS == 2 {
            let (first, second) = (target[0] - self.scale * first, target[1] - self.scale * second);
            (first * first + second * second) as u32
        } else {
            let first = target[0] - self.scale * first;
            (first * first) as u32
        }
    }
}

/// Integers of the hash in a level. At 1 bit, where weights are far from their patterns, [`MAX_DISTANCE`] levels of one
/// would be too near.
const fn integers_per_level(step: Step) -> i32 {
    match (step.weights, step.bits) {
        (2, 2) => 2,
        (2, _) => 1,
        _ => 8,
    }
}

/// What makes an integer of the hash positive.
const fn offset(step: Step) -> i32 {
    if step.weights == 2 { 30 } else { 512 }
}

/// The cost of a weight for a distance in levels, at most [`MAX_DISTANCE`]: `(d² · slope + d · excess) / 32`, rounded.
#[inline(always)]
pub(super) fn cost(slope: u16, excess: u16, distance: u8) -> u8 {
    let distance = u16::from(distance);
    ((distance * distance * slope + distance * excess + 16) >> 5).min(255) as u8
}

/// Thirty-seconds of a cost unit for a distance of one level. The finer the costs, the sooner they saturate, and at 4
/// bits, where the patterns near an unlikely weight are far apart, that is worse than any rounding.
pub(super) const fn slope(step: Step) -> u16 {
    match (step.weights, step.bits) {
        (2, 2) => 22,
        (2, 3) => 11,
        (2, 4) => 16,
        (2, _) => 21,
        (_, 3) => 8,
        _ => 30,
    }
}

/// How a step is computed. All make the same choices.
#[derive(Debug, Clone, Copy)]
pub(super) enum CoarseEngine {
    /// The definition, for any trellis.
    Reference,
    /// Blocks of [`LANES`] states in safe code, for any machine.
    Portable,
    /// 256-bit integers.
    #[cfg(target_arch = "x86_64")]
    Avx2(super::coarse_x86_64::Avx2),
    /// 512-bit integers and shuffles of bytes.
    #[cfg(target_arch = "x86_64")]
    Avx512Vbmi(super::coarse_x86_64::Avx512Vbmi),
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
            SimdLevel::Avx2 | SimdLevel::Avx512 => {
                super::coarse_x86_64::Avx2::new(simd).map_or(Self::Portable, Self::Avx2)
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512Vbmi => {
                super::coarse_x86_64::Avx512Vbmi::new(simd).map_or(Self::Portable, Self::Avx512Vbmi)
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => Self::Portable,
        }
    }

    /// One step of `N` tiles: fills each `new` from `old`, both `[J]` and `old` followed by `LANES` values that may be
    /// read but do not count; subtracts `floor` from every cost and leaves the least of `new` in its place.
    fn step<const N: usize>(self, tables: &CoarseTables, tiles: &mut [CoarseStep<'_>; N]) {
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

/// A path back from the end of a tile.
#[derive(Debug, Clone, Copy)]
struct Path {
    /// Exact cost of its steps, less that of the best path.
    cost: u32,
    /// The low bits of the state before its first step.
    low: u16,
    /// The chunk of its first step.
    chunk: u8,
    /// Which path it continues.
    parent: u8,
}

/// The ways to lead up to paths by one step: those of path `p` at `[p << k, (p + 1) << k)`.
#[derive(Debug)]
struct Candidates {
    /// What they are ranked by, exact cost and estimate, above [`INDEX_BITS`] bits of their place.
    keys: Vec<u32>,
    /// The exact costs.
    costs: Vec<u32>,
}

/// Bits of a place among [`MAX_BEAM`] paths of 32 predecessors each.
const INDEX_BITS: u32 = 11;

/// The largest rank; an estimate of 255 at 2 bits is just above.
const MAX_RANK: u32 = u32::MAX >> INDEX_BITS;

for_every_level! {
    /// Ranks all ways to lead up to `paths` through states whose low bits agree with `start` from bit `chosen` on.
    fn rank(
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
    fn select(keys: &mut [u32], low: &dyn Fn(usize) -> u16, places: &mut [(u16, u16)]) -> usize {
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

/// A search over up to [`BATCH`] tiles at a time, with its scratch.
#[derive(Debug)]
pub(super) struct CoarseSearch<'a> {
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
    pub(super) fn new(tables: &'a CoarseTables, simd: Simd, beam: usize) -> Self {
        let engine = CoarseEngine::new(tables, simd);
        assert!((1..=MAX_BEAM).contains(&beam), "a beam of {beam}");
        let (bytes, ways) = (history_bytes(tables.step, tables.window), beam << tables.step.bits);
        let candidates = Candidates { keys: vec![0; ways], costs: vec![0; ways] };
        Self { tables, engine, simd, beam, history: vec![vec![0; bytes]; BATCH], trace: Vec::new(), candidates }
    }

    /// Finds windows for the weights of `tiles`, at most [`BATCH`], and writes the `k`-bit chunk of each step.
    pub(super) fn run(&mut self, tiles: &[[f32; TILE_LEN]], chunks: &mut [[u8; TILE_LEN]]) {
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
pub(super) const fn search_bytes(step: Step, window: u32) -> usize {
    BATCH * history_bytes(step, window) + (step.weights << window) + TILE_LEN * MAX_BEAM * size_of::<Path>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All step kinds.
    const STEPS: [(usize, u32); 6] = [(2, 2), (2, 3), (2, 4), (2, 5), (1, 3), (1, 4)];

    #[test]
    fn a_cost_is_the_square_of_a_distance_and_what_lies_beyond() {
        assert_eq!([0, 1, 2, 4, 15].map(|d| cost(16, 0, d)), [0, 1, 2, 8, 113]);
        // Two levels beyond: ((3 + 2)² − 2²) · 16 / 32 = 10.5.
        assert_eq!(cost(16, 2 * 2 * 16, 3), 11);
        assert_eq!(cost(21, 4000, 15), 255);
    }

    #[test]
    fn a_weight_lies_next_to_the_level_of_its_integer() {
        let two = CoarseTables::new(Hash::new(2), Step { weights: 2, bits: 4 }, 8);
        assert_eq!([-30, 0, 30].map(|integer| two.level(32 * integer)), [(0, 0), (30, 0), (60, 0)]);
        assert_eq!(two.level(15), (30, 0));
        assert_eq!(two.level(16), (31, 0));
        // Two levels beyond the last, 2·2·16.
        assert_eq!([-32, 32].map(|integer| two.level(32 * integer)), [(0, 64), (60, 64)]);
        let one = CoarseTables::new(Hash::new(1), Step { weights: 1, bits: 3 }, 8);
        assert_eq!([-512, -505, 0, 7, 8].map(|integer| one.level(4 * integer).0), [0, 0, 64, 64, 65]);
    }

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
