//! Activations as integers of 16 bits.

use crate::math::simd::{Simd, for_every_level};

/// The largest integer.
pub(super) const LARGEST: f32 = 32767.0;

/// The least of the largest magnitudes that are rounded: below it the step leaves f32's normal range.
const SMALLEST_PEAK: f32 = 1e-30;

for_every_level! {
    /// The largest magnitude; infinite or NaN if a value is.
    pub(super) fn peak(values: &[f32]) -> f32 {
        const LANES: usize = 64;
        // As integers, because the magnitudes of f32 are ordered like their bits, NaN above infinity.
        let magnitude = |value: &f32| value.to_bits() & 0x7FFF_FFFF;
        let (blocks, rest) = values.as_chunks::<LANES>();
        let mut peaks = [0u32; LANES];
        for block in blocks {
            for (peak, value) in peaks.iter_mut().zip(block) {
                *peak = magnitude(value).max(*peak);
            }
        }
        for (peak, value) in peaks.iter_mut().zip(rest) {
            *peak = magnitude(value).max(*peak);
        }
        // In halves: one after the other they would take longer than a block.
        for half in [32, 16, 8, 4, 2, 1] {
            let (left, right) = peaks.split_at_mut(half);
            left.iter_mut().zip(right).for_each(|(left, right)| *left = (*left).max(*right));
        }
        f32::from_bits(peaks[0])
    }
}

for_every_level! {
    /// The nearest multiples of `1/factor`.
    pub(super) fn round(values: &[f32], factor: f32, out: &mut [i16]) -> () {
        /// Added and subtracted again, it leaves the nearest integer.
        const MAGIC: f32 = 12_582_912.0;
        for (out, value) in out.iter_mut().zip(values) {
            *out = ((value * factor + MAGIC).to_bits() as i32 - MAGIC.to_bits() as i32) as i16;
        }
    }
}

/// Whether values with that largest magnitude can be rounded.
pub(super) fn rounds(peak: f32) -> bool {
    peak == 0.0 || (peak.is_finite() && peak >= SMALLEST_PEAK)
}

/// Rounds `values` to multiples of a step, which it returns: `values[i] ≈ step · out[i]`, off by half a step at most,
/// the step being the largest magnitude / 32767. Values beyond the end of `values` become zero. `None`, and nothing
/// written, if a value is not finite or all are nearly, but not quite, zero.
pub(super) fn quantize(simd: Simd, values: &[f32], out: &mut [i16]) -> Option<f32> {
    let peak = peak(simd, values);
    let (out, padding) = out.split_at_mut(values.len());
    if peak == 0.0 {
        out.fill(0);
        padding.fill(0);
        return Some(0.0);
    }
    if !rounds(peak) {
        return None;
    }
    round(simd, values, LARGEST / peak, out);
    padding.fill(0);
    Some(peak / LARGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn values_are_rounded_to_the_nearest_multiple_of_the_step(
            values in prop::collection::vec(-1e3f32..1e3, 1..70), scale in -8i32..8,
        ) {
            let values: Vec<f32> = values.iter().map(|value| value * 10f32.powi(scale)).collect();
            for simd in Simd::available() {
                let mut out = vec![7i16; values.len() + 5];
                let Some(step) = quantize(simd, &values, &mut out) else {
                    prop_assert!(values.iter().all(|value| value.abs() < SMALLEST_PEAK));
                    continue;
                };
                for (value, integer) in values.iter().zip(&out) {
                    // The quotient itself is rounded in f32, below 2¹⁵.
                    prop_assert!((value / step - f32::from(*integer)).abs() <= 0.5 + 0.01, "{value} {step} {integer}");
                }
                prop_assert!(out[values.len()..].iter().all(|integer| *integer == 0));
            }
        }
    }

    #[test]
    fn what_cannot_be_rounded_is_told() {
        for simd in Simd::available() {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40] {
                let mut values = vec![0.0; 33];
                values[17] = value;
                assert_eq!(quantize(simd, &values, &mut [0; 33]), None, "{value}");
            }
        }
    }
}
