//! Sines whose bits do not depend on a mathematics library: sums, products and quotients alone.

use std::f64::consts::FRAC_PI_2;

/// `sin(2π · numerator / denominator)` by its Taylor series on one quarter turn, to 1e-15.
pub(crate) fn sin_turns(numerator: u64, denominator: u64) -> f64 {
    let quarters = 4 * (numerator % denominator);
    let (quadrant, rest) = (quarters / denominator, quarters % denominator);
    let x = FRAC_PI_2 * (rest as f64 / denominator as f64);
    let (first, start) = if quadrant % 2 == 0 { (x, 1) } else { (1.0, 0) };
    let (mut term, mut sum) = (first, first);
    for n in 1..12 {
        let k = f64::from(start + 2 * n);
        term *= -x * x / (k * (k - 1.0));
        sum += term;
    }
    if quadrant < 2 { sum } else { -sum }
}

/// `cas(2π · numerator / denominator)`, cosine plus sine.
pub(crate) fn cas_turns(numerator: u64, denominator: u64) -> f64 {
    // A quarter turn more makes the sine a cosine.
    sin_turns(4 * numerator + denominator, 4 * denominator) + sin_turns(numerator, denominator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;

    #[test]
    fn the_series_is_the_sine() {
        for n in 0..1000 {
            let expected = (std::f64::consts::TAU * n as f64 / 360.0).sin();
            assert!(abs_diff_eq!(sin_turns(n, 360), expected, epsilon = 4e-15), "{n}");
        }
        assert_eq!(sin_turns(90, 360), 1.0);
        assert_eq!(sin_turns(180, 360), 0.0);
    }

    #[test]
    fn cas_is_cosine_plus_sine() {
        for n in 0..100 {
            let angle = std::f64::consts::TAU * f64::from(n) / 43.0;
            assert!(abs_diff_eq!(cas_turns(n as u64, 43), angle.cos() + angle.sin(), epsilon = 1e-13), "{n}");
        }
    }
}
