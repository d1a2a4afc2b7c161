//! The computed patterns of the trellis: a hash of the window, nothing stored.
//!
//! A window `s` of `L` bits is multiplied by an odd constant, the high half is folded onto the low one, and the fields
//! of the product are added. A sum of four uniform fields is close to a Gaussian, which is what a rotated weight looks
//! like. One wrapping 32-bit multiply a step, integers until the last operation: the same on a CPU, in WGSL and in
//! CUDA.
//!
//! Source: the "1MAD" code of Tseng et al., *QTIP: Quantization with Trellises and Incoherence Processing* (2024), with
//! other constants, and here with two weights a step at the low rates.

/// How many weights a step of the trellis yields, and the bits that it shifts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Step {
    /// Weights a step, `V`: 1 or 2.
    pub weights: usize,
    /// Bits a step, `k`: 1 to 5.
    pub bits: u32,
}

impl Step {
    /// The step for a rate in bits per weight: two weights a step below 3 bits, one from there on.
    pub fn for_rate(bits: f64) -> Self {
        if bits < 3.0 { Self { weights: 2, bits: (2.0 * bits) as u32 } } else { Self { weights: 1, bits: bits as u32 } }
    }

    /// Words of a tile.
    pub const fn tile_words(self) -> usize {
        super::TILE_LEN / self.weights * self.bits as usize / 32
    }
}

/// The constants of a step kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash {
    /// The multiplier; odd.
    pub multiplier: u32,
    /// Weights a step.
    pub weights: usize,
}

/// One over the standard deviation of the sum of four independent uniform nibbles, √(4·(16²−1)/12) = √85.
pub const NIBBLE_UNIT: f32 = 0.108_465_23;

/// One over the standard deviation of the sum of four independent uniform bytes, √(4·(256²−1)/12) = √21845.
pub const BYTE_UNIT: f32 = 0.006_765_875;

impl Hash {
    /// The hash for `weights` weights a step.
    ///
    /// The multipliers come from a search over 1500 random odd numbers by the error on a Gaussian, over the rates of
    /// the step and windows of 12 and 16 bits: `cargo run --release -p pixel-bench --bin search_multipliers -- --bits
    /// 3,4` ranks the one for one weight first, `-- --bits 1.5,2,2.5` the one for two among its eight best, .05 % from
    /// the first (other samples, and a shorter search over the seam, had put it first). Half of all candidates are 1 to
    /// 2 % worse.
    pub const fn new(weights: usize) -> Self {
        Self { multiplier: if weights == 2 { 0x2DBA_0BD5 } else { 0xCB3A_AE95 }, weights }
    }

    /// The mixed bits of window `s`.
    #[inline]
    pub const fn mix(self, s: u32) -> u32 {
        let x = s.wrapping_mul(self.multiplier);
        x ^ (x >> 16)
    }

    /// The pattern of window `s` in integer units: `weights` values, the second 0 where there is one.
    ///
    /// Two weights: the sums of the four nibbles of the low and of the high half, minus 30. One weight: the sum of the
    /// four bytes, minus 510.
    #[inline]
    pub const fn integers(self, s: u32) -> [i32; 2] {
        if self.weights == 2 { self.integers_of::<2>(s) } else { self.integers_of::<1>(s) }
    }

    /// [`integers`](Self::integers) where the compiler knows that there are `WEIGHTS`.
    #[inline(always)]
    pub(super) const fn integers_of<const WEIGHTS: usize>(self, s: u32) -> [i32; 2] {
        let x = self.mix(s);
        if WEIGHTS == 2 {
            let pairs = (x & 0x0F0F_0F0F) + ((x >> 4) & 0x0F0F_0F0F);
            let sums = pairs + (pairs >> 8);
            [(sums & 0xFF) as i32 - 30, ((sums >> 16) & 0xFF) as i32 - 30]
        } else {
            let pairs = (x & 0x00FF_00FF) + ((x >> 8) & 0x00FF_00FF);
            [((pairs & 0xFFFF) + (pairs >> 16)) as i32 - 510, 0]
        }
    }

    /// One integer unit in units of the row scale.
    #[inline]
    pub const fn unit(self) -> f32 {
        if self.weights == 2 { NIBBLE_UNIT } else { BYTE_UNIT }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn the_fields_of_a_known_product_add_up() {
        // Multiplier 1: x = s ^ (s >> 16); s = 0x0000_1234 stays, its nibbles are 1 + 2 + 3 + 4.
        let two = Hash { multiplier: 1, weights: 2 };
        assert_eq!(two.integers(0x1234), [10 - 30, -30]);
        // 0xF000_0000 folds to 0xF000_F000: both halves hold one nibble of 15.
        assert_eq!(two.integers(0xF000_0000), [15 - 30, 15 - 30]);
        let one = Hash { multiplier: 1, weights: 1 };
        assert_eq!(one.integers(0x1234), [0x12 + 0x34 - 510, 0]);
        assert_eq!(one.integers(0x00FF_0000), [255 + 255 - 510, 0]);
    }

    #[test]
    fn the_units_are_the_standard_deviations() {
        assert_abs_diff_eq!(f64::from(NIBBLE_UNIT) * 85f64.sqrt(), 1.0, epsilon = 1e-7);
        assert_abs_diff_eq!(f64::from(BYTE_UNIT) * 21845f64.sqrt(), 1.0, epsilon = 1e-7);
    }

    #[test]
    fn the_patterns_are_centred_and_of_unit_variance() {
        for weights in [1, 2] {
            let hash = Hash::new(weights);
            let values: Vec<f64> = (0..1 << 16)
                .flat_map(|s| hash.integers(s)[..weights].to_vec())
                .map(|i| f64::from(i) * f64::from(hash.unit()))
                .collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64;
            assert_abs_diff_eq!(mean, 0.0, epsilon = 0.02);
            assert_abs_diff_eq!(variance, 1.0, epsilon = 0.03);
        }
    }
}
