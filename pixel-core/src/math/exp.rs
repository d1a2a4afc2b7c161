//! The exponential function and what follows from it, in loops that compilers make vectors of.

use std::f32::consts::LOG2_E;

/// Beyond it, on either side, `e^x` leaves f32's normal range.
const LIMIT: f32 = 87.3;

/// `e^x`, with a relative error below 2⁻²²; `x` beyond ±87.3 counts as that, NaN stays.
///
/// With `x = n·ln 2 + r`, `|r| ≤ ½·ln 2`, it is `2ⁿ` times the Taylor polynomial of degree 6 in `r`, whose remainder is
/// below `r⁷/7!·e^r ≤ 1.7·10⁻⁷`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Added, it leaves the nearest integer in the lower bits.
    const MAGIC: f32 = 12_582_912.0;
    /// The upper bits of ln 2, whose product with the exponents is exact, and the rest.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let x = if x > LIMIT { LIMIT } else { x };
    let x = if x < -LIMIT { -LIMIT } else { x };
    let shifted = x * LOG2_E + MAGIC;
    let n = shifted - MAGIC;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let tail = r * (1.0 / 720.0) + 1.0 / 120.0;
    let tail = tail * r + 1.0 / 24.0;
    let tail = tail * r + 1.0 / 6.0;
    let tail = tail * r + 0.5;
    let value = (tail * r) * r + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32).wrapping_add(127) << 23;
    value * f32::from_bits(exponent as u32)
}

/// `2^x` for `x` up to 127: 0 below −126, NaN for NaN.
///
/// # Accuracy
/// A relative error of 2·10⁻⁷ at most; exact where `x` is an integer. `x` is split into an integer, which becomes the
/// exponent, and a rest between −½ and ½, for which the polynomial of degree 6 with the least relative error stands
/// (Remez's exchange: 1.9·10⁻⁹; its first two are 1 and ln 2 in f32).
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    /// Added, it leaves the nearest integer in the lower bits.
    const MAGIC: f32 = 12_582_912.0;
    const SERIES: [f32; 7] =
        [1.0, std::f32::consts::LN_2, 0.240_226_46, 0.055_503_286, 0.009_618_489, 0.001_339_993_1, 0.000_153_458_12];
    let shifted = x + MAGIC;
    let rest = x - (shifted - MAGIC);
    let power = SERIES[..6].iter().rev().fold(SERIES[6], |sum, c| sum * rest + c);
    let exponent = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    if x < -126.0 { 0.0 } else { power * exponent }
}

/// The error function, off by 5·10⁻⁷ at most.
///
/// Source: Abramowitz and Stegun, *Handbook of Mathematical Functions* (1964), 7.1.26.
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [0.254_829_6, -0.284_496_74, 1.421_413_8, -1.453_152, 1.061_405_4];
    let t = 1.0 / (1.0 + P * x.abs());
    let polynomial = ((((A[4] * t + A[3]) * t + A[2]) * t + A[1]) * t + A[0]) * t;
    (1.0 - polynomial * exp(-x * x)).copysign(x)
}

/// `1/(1 + e^(−x))`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent, off by 3·10⁻⁷ at most.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    2.0 * sigmoid(2.0 * x) - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points() -> impl Iterator<Item = f32> {
        (-870_000..=870_000).map(|i| i as f32 * 1e-4)
    }

    #[test]
    fn the_exponential_is_off_by_a_few_roundings() {
        for x in points() {
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((found / expected - 1.0).abs() < 2f64.powi(-22), "e^{x}: {found} for {expected}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 2e-38 && exp(f32::INFINITY) > 8e37);
    }

    #[test]
    fn powers_of_two_are_accurate() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -126.0 + i as f32 * (126.0 / 2_000_000.0);
            worst = worst.max((f64::from(exp2(x)) / f64::from(x).exp2() - 1.0).abs());
        }
        assert!(worst <= 2e-7, "{worst:e}");
        assert!((-126..=127).all(|x| exp2(x as f32) == 2f32.powi(x)));
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!([-126.1, -1e30, f32::MIN, f32::NEG_INFINITY].map(exp2), [0.0; 4]);
    }

    #[test]
    fn functions_of_it_lie_between_their_limits() {
        for x in points() {
            // The series of erf for small x, its limits and 1 − e^(−x²)/(x·√π) from both sides for large ones.
            let tangent = f64::from(x).tanh();
            assert!((f64::from(tanh(x)) - tangent).abs() < 3e-7, "tanh {x}: {} for {tangent}", tanh(x));
            let logistic = 1.0 / (1.0 + (-f64::from(x)).exp());
            assert!((f64::from(sigmoid(x)) - logistic).abs() < 2e-7, "sigmoid {x}");
        }
        for i in -500..=500 {
            let x = f64::from(i) * 0.01;
            // The integral by Simpson's rule.
            let steps = 2000;
            let at = |k: i32| (-(x * f64::from(k) / f64::from(steps)).powi(2)).exp();
            let inner: f64 = (1..steps).map(|k| f64::from(2 + 2 * (k % 2)) * at(k)).sum();
            let expected = (at(0) + inner + at(steps)) * x / f64::from(3 * steps) * 2.0 / std::f64::consts::PI.sqrt();
            assert!((f64::from(erf(x as f32)) - expected).abs() < 5e-7, "erf {x}: {} for {expected}", erf(x as f32));
        }
    }
}
