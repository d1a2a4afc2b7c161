//! Patterns that are computed from their index: none of them is stored.

use super::similarity::norm;

/// Writes computed pattern `index` of part `part` to `pattern`, row-major, with norm 1.
///
/// Definition, in wrapping 32-bit arithmetic:
///
/// ```text
/// mix(x):  x ^= x >> 16;  x *= 0x7FEB352D;  x ^= x >> 15;  x *= 0x846CA68B;  x ^= x >> 16
/// seed   = mix(65536·part + index)
/// h(i)   = mix(seed + 0x9E3779B9·i)                               i = 0 … tile_len − 1, row-major
/// v(i)   = the sum of the four nibbles of the low half of h(i), minus 30
/// p(i)   = v(i) / ‖v‖        in double precision, rounded once;   v(0) = 1 if all v are zero
/// ```
///
/// # Sources
/// The mixer is C. Wellons' "lowbias32" (hash-prospector, 2018). A sum of four nibbles is nearly Gaussian, as a
/// direction in a rotated weight is.
///
/// # Example
/// ```
/// use pixel_core::patterns::computed_pattern;
/// let mut pattern = [0.0; 64];
/// computed_pattern(3, 17, &mut pattern);
/// let energy: f32 = pattern.iter().map(|x| x * x).sum();
/// assert!((energy - 1.0).abs() < 1e-6);
/// ```
pub fn computed_pattern(part: u16, index: u16, pattern: &mut [f32]) {
    computed_values(part, index, pattern);
    normalise(pattern);
}

/// The same before the division by the norm: integers, not all of them zero.
pub(crate) fn computed_values(part: u16, index: u16, pattern: &mut [f32]) {
    let seed = mix(65536 * u32::from(part) + u32::from(index));
    for (i, value) in pattern.iter_mut().enumerate() {
        let hash = mix(seed.wrapping_add(0x9E37_79B9u32.wrapping_mul(i as u32)));
        let nibbles = (0..4).map(|n| (hash >> (4 * n) & 15) as i32).sum::<i32>();
        *value = (nibbles - 30) as f32;
    }
    if pattern.iter().all(|value| *value == 0.0) {
        pattern[0] = 1.0;
    }
}

/// Divides by the norm; a zero vector stays unchanged.
pub(crate) fn normalise(pattern: &mut [f32]) {
    let norm = norm(pattern);
    if norm > 0.0 {
        pattern.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
}

pub(crate) fn mix(mut x: u32) -> u32 {
    x ^= x >> 16;
    x = x.wrapping_mul(0x7FEB_352D);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846C_A68B);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_follows_its_definition() {
        // By hand: index 0 of part 0 has seed mix(0) = 0, so value i is the nibble sum of mix(i · 0x9E3779B9).
        let mut pattern = [0.0; 2];
        computed_pattern(0, 0, &mut pattern);
        // v = (−30, v₁): mix(0) has no nibbles set.
        let low = mix(0x9E37_79B9) & 0xFFFF;
        let v1 = f64::from((low & 15) + (low >> 4 & 15) + (low >> 8 & 15) + (low >> 12)) - 30.0;
        let norm = (900.0 + v1 * v1).sqrt();
        assert_eq!(pattern, [(-30.0 / norm) as f32, (v1 / norm) as f32]);
    }

    #[test]
    fn a_single_weight_has_a_pattern_of_one() {
        for index in 0..200 {
            let mut pattern = [0.0];
            computed_pattern(1, index, &mut pattern);
            assert_eq!(pattern[0].abs(), 1.0, "index {index}");
        }
    }
}
