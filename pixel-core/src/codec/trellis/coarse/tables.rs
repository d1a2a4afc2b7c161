//! The tables of the coarse search: the levels of all windows, and what a distance in levels costs.

use super::LANES;
use crate::codec::trellis::patterns::{Hash, Step};

/// The largest distance in levels that costs more than the next smaller.
pub(super) const MAX_DISTANCE: u8 = 15;

/// Exact units in a level.
const LEVEL: u32 = 32;

/// Levels of all windows and what they cost.
#[derive(Debug)]
pub(crate) struct CoarseTables {
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
    pub(super) unit: u32,
    /// Exact units in an integer of the hash.
    scale: i32,
}

impl CoarseTables {
    /// Tables for a trellis of `window` bits.
    pub(crate) fn new(hash: Hash, step: Step, window: u32) -> Self {
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
    pub(super) const fn stride(&self) -> usize {
        self.num_low() + LANES
    }

    /// A weight in exact units. Values far beyond the extreme patterns are clamped.
    pub(super) fn quantize(&self, x: f32) -> i32 {
        let bound = (2 * offset(self.step) * self.scale) as f32;
        (x / self.hash.unit() * self.scale as f32).round().clamp(-bound, bound) as i32
    }

    /// The level next to a weight in exact units, and by how much the weight is beyond the middle of the last one, in
    /// [`CoarseStep::excess`](super::engine::CoarseStep::excess).
    pub(super) fn level(&self, x: i32) -> (u8, u16) {
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
    pub(super) fn distance<const WEIGHTS: usize>(&self, target: [i32; 2], s: u32) -> u32 {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
