use super::super::dictionary::{RATES, Rate};
use super::*;
use crate::math::simd::SimdLevel;
use crate::matrix::Matrix;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

fn search(bits: f64, beam: usize) -> Search {
    Rate::of(bits).unwrap().search(beam)
}

fn gaussian(rows: usize, d_input: usize, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..rows * d_input).map(|_| rng.sample(StandardNormal)).collect();
    Matrix::new(Shape::new(rows, d_input).unwrap(), values).unwrap()
}

/// Codes and decoded values of all rows.
fn encode(search: &Search, weight: &Matrix, feedback: Option<&RowFeedback>) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut decoded) = (Vec::new(), Vec::new());
    search.encode(weight.as_ref(), feedback, |row| {
        codes.extend_from_slice(row.codes);
        decoded.extend_from_slice(row.decoded);
    });
    (codes, decoded)
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// Feedback by which a column hears of all before it, as rotated inputs with a falling spectrum have it.
fn feedback(n: usize, strength: f32) -> RowFeedback {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let factor = (0..n * n).map(|_| strength * rng.sample::<f32, _>(StandardNormal) / (n as f32).sqrt()).collect();
    RowFeedback::new(n, factor)
}

/// The residuals of decoded rows by the definition of [`RowFeedback`].
fn residuals(weight: &Matrix, decoded: &[f32], feedback: &RowFeedback) -> Vec<f32> {
    let n = weight.shape().d_input();
    let mut targets = weight.as_slice().to_vec();
    for (targets, decoded) in targets.chunks_exact_mut(n).zip(decoded.chunks_exact(n)) {
        for i in 0..n {
            targets[i] -= decoded[i];
            for j in i + 1..n {
                targets[j] += targets[i] * feedback.row(i)[j];
            }
        }
    }
    targets
}

#[test]
fn in_a_short_row_no_codes_are_closer() {
    // All ways through three or two nibbles are paths.
    for (bits, d_input) in [(1.0, 8), (1.0, 5), (1.5, 8), (1.5, 3)] {
        let search = search(bits, MAX_BEAM);
        let rate = Rate::of(bits).unwrap();
        let (patterns, span, layout) = (rate.patterns(), rate.span, rate.layout(Shape::new(1, d_input).unwrap()));
        let weight = gaussian(20, d_input, 1);
        let (_, decoded) = encode(&search, &weight, None);
        for (row, decoded) in decoded.chunks_exact(d_input).enumerate() {
            let row = weight.as_ref().row(row).to_vec();
            let found = squared_error(&row, decoded);
            let error = |codes: usize| {
                let value = |i: usize| -> f32 {
                    let reaching = layout.reaching(i);
                    let pattern = |t: usize| (t % layout.period() * 16 + (codes >> (4 * t) & 15)) * span;
                    reaching.map(|t| patterns[pattern(t) + i - layout.start(t)]).sum()
                };
                squared_error(&row, &(0..d_input).map(value).collect::<Vec<f32>>())
            };
            let least = (0..1 << (4 * layout.fields())).map(error).fold(f64::INFINITY, f64::min);
            // What looking ahead and numbers of 16 bits may cost.
            assert!(found <= least * 1.002 + 1e-4, "{bits} bits, {d_input} weights: {found} over {least}");
        }
    }
}

#[test]
fn the_error_is_that_of_the_table() {
    // Of the module's documentation, for rows of 1024; with fewer weights it scatters.
    for (bits, expected) in RATES.into_iter().zip([0.3052, 0.1471, 0.0722, 0.0362, 0.0183, 0.0046]) {
        let weight = gaussian(8, 1024, 2);
        let (_, decoded) = encode(&search(bits, 256), &weight, None);
        let error = squared_error(weight.as_slice(), &decoded) / squared_error(weight.as_slice(), &[0.0; 8 * 1024]);
        assert!((error / expected - 1.0).abs() < 0.04, "{bits} bits: {error}");
    }
}

#[test]
fn every_level_chooses_the_same_codes() {
    for (bits, beam, d_input) in [(1.0, 40, 100), (1.5, 16, 44), (2.0, 256, 300), (3.0, 130, 99), (4.0, 20, 65)] {
        let weight = gaussian(3, d_input, 3);
        let fed = feedback(d_input, 0.5);
        for feedback in [None, Some(&fed)] {
            let codes = |simd| encode(&search(bits, beam).with_simd(simd), &weight, feedback).0;
            let expected = codes(Simd::at_most(SimdLevel::Portable));
            for simd in Simd::available() {
                assert_eq!(codes(simd), expected, "{bits} bits, {simd:?}, {}", feedback.is_some());
            }
        }
    }
}

#[test]
fn residuals_that_are_fed_back_are_as_small_as_errors_without() {
    // Rows longer than stay open, and of a whole number of blocks or not.
    for (bits, d_input) in [(2.0, 512), (2.0, 333), (4.0, 300), (1.0, 420), (1.5, 320)] {
        let (search, weight, fed) = (search(bits, 128), gaussian(40, d_input, 4), feedback(d_input, 1.0));
        let (_, plain) = encode(&search, &weight, None);
        let (_, decoded) = encode(&search, &weight, Some(&fed));
        // Residuals as a share of the targets' power, which feedback adds to.
        let share = |decoded: &[f32], feedback: &RowFeedback| {
            let residuals = residuals(&weight, decoded, feedback);
            let targets = decoded.iter().zip(&residuals).map(|(d, r)| d + r);
            let power = targets.map(|t| t * t).sum::<f32>();
            residuals.iter().map(|r| r * r).sum::<f32>() / power
        };
        let none = RowFeedback::new(d_input, vec![0.0; d_input * d_input]);
        let (least, without, with) = (share(&plain, &none), share(&plain, &fed), share(&decoded, &fed));
        assert!(without > 1.25 * least, "{bits} bits, {d_input} columns: {without} without feedback");
        assert!(with < 1.04 * least, "{bits} bits, {d_input} columns: {with} of {least}");
    }
}

#[test]
fn rows_do_not_depend_on_those_beside_them() {
    let (search, weight, fed) = (search(2.0, 64), gaussian(70, 200, 5), feedback(200, 0.5));
    let (_, all) = encode(&search, &weight, Some(&fed));
    for row in [0, 31, 32, 69] {
        let alone = Matrix::new(Shape::new(1, 200).unwrap(), weight.as_ref().row(row).to_vec()).unwrap();
        assert_eq!(encode(&search, &alone, Some(&fed)).1, all[row * 200..][..200], "row {row}");
    }
}

#[test]
fn feedback_of_nothing_changes_nothing() {
    // Longer than the blocks that stay open with feedback.
    let (search, weight) = (search(2.0, 64), gaussian(4, 500, 7));
    let zero = RowFeedback::new(500, vec![0.0; 500 * 500]);
    assert_eq!(encode(&search, &weight, Some(&zero)), encode(&search, &weight, None));
}

#[test]
fn outliers_and_zeros_get_codes() {
    for value in [0.0, 1e-30, 30.0, -1e30] {
        let mut weight = gaussian(2, 100, 6);
        weight.as_mut_slice()[..100].fill(value);
        weight.as_mut_slice()[150] = value;
        for feedback in [None, Some(&feedback(100, 2.0))] {
            let (codes, decoded) = encode(&search(2.5, 32), &weight, feedback);
            assert_eq!(codes.len(), 2 * 13 * 5);
            assert!(decoded.iter().all(|value| value.is_finite()));
        }
    }
}
