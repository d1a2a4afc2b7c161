//! The search for the best path through a tail-biting bitshift trellis.
//!
//! State `s` (`L` bits) follows state `s'` if `s = (s' << k | chunk) mod 2^L`, so the `2^k` predecessors of `s` share
//! the low `L − k` bits of theirs, `s >> k`. Writing `J = 2^(L−k)`, all that step `t` leaves behind is
//!
//! ```text
//! best_t[j] = min over h < 2^k of  best_{t−1}[(h·J + j) >> k] + distance_t(h·J + j),   j < J,
//! ```
//!
//! the least cost of a path whose last state ends in the bits `j`. These arrays alone are kept; the traceback
//! recomputes the few sums it needs. Costs are 16-bit integers with saturating sums, so that every implementation makes
//! the same choice on every machine, 32 states to a vector register.
//!
//! A tile starts and ends in the same state, whose low `L − k` bits are found first by a free search over the seam.

use super::patterns::{Hash, Step};
use crate::math::simd::{Simd, SimdLevel};

/// States that a vector step handles together; tables are blocked by it.
pub(super) const LANES: usize = 32;

/// Steps on each side of the seam in the search for the common state. Relative error at 2 bits, window 12, with
/// 8, 16, 32 and 64 (a whole extra pass) of them: .0753, .0748, .0745, .0744.
const SEAM_STEPS: usize = 32;

/// Distances of the patterns of all windows in 16-bit fixed point.
#[derive(Debug)]
pub(super) struct Tables {
    /// Window bits, `L`.
    pub(super) window: u32,
    /// The step.
    pub(super) step: Step,
    /// For each `j` block and each `h`: `LANES` first values, then, if there are two weights a step, `LANES` second
    /// values, for the windows `h·J + j`.
    stored: Vec<i16>,
    /// Where they begin.
    first: usize,
    /// Fixed-point units in one unit of the row scale.
    unit: f32,
    /// Doublings of a difference before it is squared: finer costs for the finer rates.
    pub(super) doublings: u32,
}

impl Tables {
    /// Tables for a trellis of `window` bits.
    pub(super) fn new(hash: Hash, step: Step, window: u32) -> Self {
        // The largest multiples for which the extreme patterns, ±30 and ±510, fit 16 bits.
        let multiple = if step.weights == 2 { 868 } else { 64 };
        let doublings = if step.weights == 2 { 0 } else { step.bits - 2 };
        let num_low = 1usize << (window - step.bits);
        let lanes = num_low.min(LANES);
        // Vectors of 64 bytes are read faster where they lie in one cache line.
        let mut stored: Vec<i16> = Vec::with_capacity((step.weights << window) + 64);
        let first = stored.as_ptr().align_offset(64).min(63);
        stored.resize(first, 0);
        for block in (0..num_low).step_by(lanes) {
            for high in 0..1usize << step.bits {
                for weight in 0..step.weights {
                    stored.extend((0..lanes).map(|lane| {
                        let s = high * num_low + block + lane;
                        (hash.integers(s as u32)[weight] * multiple) as i16
                    }));
                }
            }
        }
        Self { window, step, stored, first, unit: multiple as f32 / hash.unit(), doublings }
    }

    /// The table.
    pub(super) fn values(&self) -> &[i16] {
        &self.stored[self.first..]
    }

    /// The number of values of the low bits, `J`.
    pub(super) const fn num_low(&self) -> usize {
        1 << (self.window - self.step.bits)
    }

    /// States in a block of the tables.
    pub(super) fn lanes(&self) -> usize {
        self.num_low().min(LANES)
    }

    /// A weight in fixed point. Values beyond the extreme patterns are clamped to them.
    fn quantize(&self, x: f32) -> i16 {
        let bound = if self.step.weights == 2 { 30.0 * 868.0 + 4000.0 } else { 32767.0 };
        (x * self.unit).round().clamp(-bound, bound) as i16
    }

    /// The cost of `target` at window `s`: the definition that the vector code follows.
    #[inline]
    pub(super) fn distance(&self, target: [i16; 2], s: usize) -> u16 {
        let (high, low) = (s / self.num_low(), s % self.num_low());
        let (lanes, weights) = (self.lanes(), self.step.weights);
        let first = (((low / lanes) << self.step.bits) + high) * weights * lanes + low % lanes;
        let mut cost = 0u16;
        for (weight, &x) in target.iter().enumerate().take(weights) {
            let mut difference = x.saturating_sub(self.values()[first + weight * lanes]);
            for _ in 0..self.doublings {
                difference = difference.saturating_add(difference);
            }
            cost = cost.saturating_add(((i32::from(difference) * i32::from(difference)) >> 16) as u16);
        }
        cost
    }
}

/// How a step is computed. All make the same choices.
#[derive(Debug, Clone, Copy)]
pub(super) enum Engine {
    /// The definition, for any trellis.
    Reference,
    /// Blocks of [`LANES`] states in safe code, for any machine.
    Portable,
    /// 256-bit integers.
    #[cfg(target_arch = "x86_64")]
    Avx2(super::x86_64::Avx2),
    /// 512-bit integers.
    #[cfg(target_arch = "x86_64")]
    Avx512(super::x86_64::Avx512),
}

impl Engine {
    /// The fastest that this trellis and `simd` allow.
    pub(super) fn new(tables: &Tables, simd: Simd) -> Self {
        if tables.num_low() < LANES {
            return Self::Reference;
        }
        match simd.level() {
            SimdLevel::Portable => Self::Portable,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => super::x86_64::Avx2::new(simd).map_or(Self::Portable, Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 | SimdLevel::Avx512Vbmi => {
                super::x86_64::Avx512::new(simd).map_or(Self::Portable, Self::Avx512)
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => Self::Portable,
        }
    }

    /// One step: fills `new` from `old`, both `[J]` and `old` followed by `LANES` values that may be read but do not
    /// count; subtracts `floor` from every cost and returns the least of `new`.
    fn step(self, tables: &Tables, target: [i16; 2], floor: u16, old: &[u16], new: &mut [u16]) -> u16 {
        match self {
            Self::Reference => step_reference(tables, target, floor, old, new),
            Self::Portable => match (tables.step.weights, tables.step.bits) {
                (2, 2) => step_portable::<2, 2>(tables, target, floor, old, new),
                (2, 3) => step_portable::<2, 3>(tables, target, floor, old, new),
                (2, 4) => step_portable::<2, 4>(tables, target, floor, old, new),
                (2, 5) => step_portable::<2, 5>(tables, target, floor, old, new),
                (1, 3) => step_portable::<1, 3>(tables, target, floor, old, new),
                (1, 4) => step_portable::<1, 4>(tables, target, floor, old, new),
                _ => step_reference(tables, target, floor, old, new),
            },
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(avx2) => avx2.step(tables, target, floor, old, new),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(avx512) => avx512.step(tables, target, floor, old, new),
        }
    }
}

fn step_reference(tables: &Tables, target: [i16; 2], floor: u16, old: &[u16], new: &mut [u16]) -> u16 {
    let (num_low, bits) = (tables.num_low(), tables.step.bits);
    for (low, best) in new[..num_low].iter_mut().enumerate() {
        let states = (0..1usize << bits).map(|high| high * num_low + low);
        let costs = states.map(|s| old[s >> bits].saturating_add(tables.distance(target, s)));
        *best = costs.fold(u16::MAX, u16::min).saturating_sub(floor);
    }
    new[..num_low].iter().copied().fold(u16::MAX, u16::min)
}

/// The same over blocks of [`LANES`] states, in a form that compilers turn into vector code.
fn step_portable<const WEIGHTS: usize, const BITS: u32>(
    tables: &Tables,
    target: [i16; 2],
    floor: u16,
    old: &[u16],
    new: &mut [u16],
) -> u16 {
    // `tables.doublings`, known to the compiler.
    let doublings = if WEIGHTS == 2 { 0 } else { BITS - 2 };
    let num_low = tables.num_low();
    let mut least = [u16::MAX; LANES];
    let blocks = tables.values().chunks_exact((WEIGHTS * LANES) << BITS);
    for (block, (table, new)) in blocks.zip(new.chunks_exact_mut(LANES)).enumerate() {
        let mut best = [u16::MAX; LANES];
        for (high, values) in table.chunks_exact(WEIGHTS * LANES).enumerate() {
            let from = (high * num_low + block * LANES) >> BITS;
            let old: &[u16; LANES] = old[from..].first_chunk().expect("padded by LANES");
            for lane in 0..LANES {
                let mut cost = 0u16;
                for weight in 0..WEIGHTS {
                    let mut difference = target[weight].saturating_sub(values[weight * LANES + lane]);
                    for _ in 0..doublings {
                        difference = difference.saturating_add(difference);
                    }
                    cost = cost.saturating_add(((i32::from(difference) * i32::from(difference)) >> 16) as u16);
                }
                best[lane] = best[lane].min(old[lane >> BITS].saturating_add(cost));
            }
        }
        for lane in 0..LANES {
            new[lane] = best[lane].saturating_sub(floor);
            least[lane] = least[lane].min(new[lane]);
        }
    }
    least.into_iter().fold(u16::MAX, u16::min)
}

/// A search over one tile at a time, with its scratch.
#[derive(Debug)]
pub(super) struct Search<'a> {
    tables: &'a Tables,
    engine: Engine,
    /// The tile in fixed point, one entry a step.
    targets: Vec<[i16; 2]>,
    /// `best_t` for `t` from −1 on, each `[J]` and `LANES` of padding.
    history: Vec<u16>,
}

impl<'a> Search<'a> {
    /// A search for tiles of `tile_len` weights.
    pub(super) fn new(tables: &'a Tables, engine: Engine, tile_len: usize) -> Self {
        let steps = tile_len / tables.step.weights;
        let rows = steps.max(2 * SEAM_STEPS) + 1;
        Self { tables, engine, targets: vec![[0; 2]; steps], history: vec![0; rows * (tables.num_low() + LANES)] }
    }

    /// Finds windows for the weights of `tile` and writes the `k`-bit chunk of each step into `chunks`.
    pub(super) fn run(&mut self, tile: &[f32], chunks: &mut [u8]) {
        for (target, weights) in self.targets.iter_mut().zip(tile.chunks_exact(self.tables.step.weights)) {
            for (fixed, &weight) in target.iter_mut().zip(weights) {
                *fixed = self.tables.quantize(weight);
            }
        }
        let steps = self.targets.len();
        let seam = self.find_seam();
        self.forward(0, steps, Some(seam));
        self.backward(0, steps, seam, |t, s| chunks[t] = (s & ((1 << self.tables.step.bits) - 1)) as u8);
    }

    /// The low bits of the state between the last step and the first, by a free search over the steps around it.
    fn find_seam(&mut self) -> usize {
        let steps = self.targets.len();
        let side = SEAM_STEPS.min(steps / 2);
        let least = self.forward(steps - side, 2 * side, None);
        let last = self.row(2 * side).iter().position(|&cost| cost == least).unwrap_or(0);
        let mut seam = 0;
        self.backward(steps - side, 2 * side, last, |t, s| {
            if t == steps - 1 {
                seam = s % self.tables.num_low();
            }
        });
        seam
    }

    /// Runs `count` steps from step `first` on, around the end of the tile; from any state, or from the states that end
    /// in the bits `start`. Returns the least cost.
    fn forward(&mut self, first: usize, count: usize, start: Option<usize>) -> u16 {
        let num_low = self.tables.num_low();
        let stride = num_low + LANES;
        self.history[..num_low].fill(if start.is_some() { u16::MAX } else { 0 });
        if let Some(low) = start {
            self.history[low] = 0;
        }
        let mut floor = 0;
        for i in 0..count {
            let (old, new) = self.history[i * stride..].split_at_mut(stride);
            let target = self.targets[(first + i) % self.targets.len()];
            floor = self.engine.step(self.tables, target, floor, old, new);
        }
        floor
    }

    /// Walks back over what [`forward`](Self::forward) left, from a last state that ends in the bits `low`, and
    /// reports step and state.
    fn backward(&self, first: usize, count: usize, mut low: usize, mut visit: impl FnMut(usize, usize)) {
        let (num_low, bits) = (self.tables.num_low(), self.tables.step.bits);
        for i in (0..count).rev() {
            let t = (first + i) % self.targets.len();
            let old = self.row(i);
            let cost = |s: usize| old[s >> bits].saturating_add(self.tables.distance(self.targets[t], s));
            let state = (0..1usize << bits).map(|high| high * num_low + low).min_by_key(|&s| cost(s)).unwrap_or(low);
            visit(t, state);
            low = state >> bits;
        }
    }

    /// `best` after `i` steps.
    fn row(&self, i: usize) -> &[u16] {
        &self.history[i * (self.tables.num_low() + LANES)..][..self.tables.num_low()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All step kinds.
    const STEPS: [(usize, u32); 6] = [(2, 2), (2, 3), (2, 4), (2, 5), (1, 3), (1, 4)];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Also for weights beyond the patterns' range, where costs saturate.
        #[test]
        fn every_engine_makes_the_choices_of_the_reference(
            tile in prop::collection::vec(-4f32..4.0, 256), scale in 0.01f32..30.0, kind in 0usize..6,
            window in 8u32..=11
        ) {
            let (weights, bits) = STEPS[kind];
            let tables = Tables::new(Hash::new(weights), Step { weights, bits }, window);
            let tile: Vec<f32> = tile.iter().map(|weight| weight * scale).collect();
            let run = |engine| {
                let mut chunks = vec![0; tile.len() / weights];
                Search::new(&tables, engine, tile.len()).run(&tile, &mut chunks);
                chunks
            };
            let expected = run(Engine::Reference);
            for simd in Simd::available() {
                let engine = Engine::new(&tables, simd);
                prop_assert_eq!(run(engine), expected.clone(), "{:?}", engine);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// The states of the path that was found are the windows that a decoder will read, also across the seam.
        #[test]
        fn every_path_bites_its_tail(
            tile in prop::collection::vec(-4f32..4.0, 256),
            (weights, bits) in prop::sample::select(STEPS.to_vec()),
            window in 8u32..=12
        ) {
            let tables = Tables::new(Hash::new(weights), Step { weights, bits }, window);
            let mut search = Search::new(&tables, Engine::new(&tables, Simd::detect()), tile.len());
            let steps = tile.len() / weights;
            let mut chunks = vec![0; steps];
            search.run(&tile, &mut chunks);
            let seam = search.find_seam();
            search.forward(0, steps, Some(seam));
            let mut states = vec![0; steps];
            search.backward(0, steps, seam, |t, s| states[t] = s);
            for (t, &state) in states.iter().enumerate() {
                let read = (0..window.div_ceil(bits) as usize)
                    .map(|i| (chunks[(t + steps - i) % steps] as usize) << (i * bits as usize))
                    .fold(0, |s, chunk| s | chunk);
                prop_assert_eq!(read % (1 << window), state, "step {}", t);
            }
        }
    }
}
