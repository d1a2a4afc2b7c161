//! Panels of every codec, level and batch, whatever pays, against a plain product in f64.

use super::super::tests::{CODECS, activations, form, weight};
use super::super::{Arithmetic, Product};
use super::round::Rows;
use super::{DEPTH, linear};
use crate::math::simd::{Simd, SimdLevel};
use crate::synthesis::KernelForm;
use proptest::prelude::*;

fn levels() -> Vec<Simd> {
    Simd::available().into_iter().filter(|simd| simd.level() >= SimdLevel::Avx2).collect()
}

fn product(form: &KernelForm, simd: Simd) -> Product<'_> {
    let KernelForm { layout, codes, scales, dictionary, .. } = form;
    Product { layout: *layout, codes, scales, dictionary, arithmetic: Arithmetic::Integer, simd }
}

fn multiply(form: &KernelForm, simd: Simd, x: &[f32]) -> Vec<f32> {
    let shape = form.layout.shape();
    let mut y = vec![f32::NAN; x.len() / shape.d_input() * shape.d_output()];
    linear(&product(form, simd), x, &mut y);
    y
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// What the documentation of [`Arithmetic`] promises, in steps of the largest magnitude and of the largest norm.
fn step<'a>(rows: impl Iterator<Item = &'a [f64]>) -> f64 {
    let blocks = rows.flat_map(|row| row.chunks(DEPTH));
    blocks
        .map(|block| {
            let peak = block.iter().fold(0f64, |peak, value| peak.max(value.abs()));
            (peak / 32767.0).max(norm(block.iter().copied()) / 46300.0)
        })
        .fold(0.0, f64::max)
}

fn check(codec: &str, d_output: usize, d_input: usize, batch: usize, seed: u64, magnitude: f32) {
    let form = form(codec, d_output, d_input, seed);
    let (w, per_row) = (weight(&form), form.layout.scales_per_row());
    let x: Vec<f32> = activations(batch * d_input, seed ^ 1).iter().map(|x| x * magnitude).collect();
    let wide: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let scales = form.scales.chunks(per_row).map(|scales| f64::from(scales.iter().fold(0f32, |a, b| a.max(b.abs()))));
    let scales: Vec<f64> = scales.collect();
    let unscaled: Vec<f64> = w.iter().enumerate().map(|(i, w)| w / scales[i / d_input]).collect();
    // A power of two is at most twice what is needed, and one row of a strip decides for all.
    let w_step = 2.0 * step(unscaled.chunks(d_input));
    for simd in levels() {
        let y = multiply(&form, simd, &x);
        for (b, (x, y)) in wide.chunks_exact(d_input).zip(y.chunks_exact(d_output)).enumerate() {
            let x_step = step([x].into_iter());
            for (row, (w, y)) in w.chunks_exact(d_input).zip(y).enumerate() {
                let expected: f64 = w.iter().zip(x).map(|(w, x)| w * x).sum();
                let sum = |values: &[f64]| values.iter().map(|value| value.abs()).sum::<f64>();
                let bound = 0.51 * (sum(w) * x_step + sum(x) * w_step * scales[row] * 1.01)
                    + 1e-6 * norm(w.iter().copied()) * norm(x.iter().copied())
                    + 1e-30;
                let error = (f64::from(*y) - expected).abs();
                assert!(
                    error <= bound,
                    "{codec} {d_output}×{d_input}, {simd:?}, batch row {b} of {batch}, output {row}: {y} for \
                     {expected}, off by {error:e} > {bound:e}"
                );
            }
        }
    }
}

#[test]
fn panels_of_every_codec_give_the_product_of_the_dense_weight() {
    for codec in CODECS {
        check(codec, 97, 301, 19, 5, 1.0);
        check(codec, 32, 512, 8, 6, 1.0);
        check(codec, 300, 64, 3, 7, 1.0);
    }
}

#[test]
fn panels_reach_over_blocks_tiles_and_threads() {
    for codec in ["trellis:2", "trellis:4", "additive:3", "lapped:2", "lapped:2.5", "uniform:4", "matching:2"] {
        for d_input in [255, 256, 257, 520, 1031] {
            check(codec, 33, d_input, 13, 8, 1.0);
        }
        check(codec, 1100, 40, 2, 9, 1.0);
    }
}

#[test]
fn more_rows_than_a_panel_serves_are_multiplied() {
    check("trellis:2", 40, 24, super::MAX_BATCH + 9, 3, 1.0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn panels_of_any_shape_give_the_product_of_the_dense_weight(
        codec in prop::sample::select(CODECS.to_vec()),
        d_output in 1usize..140,
        d_input in 1usize..600,
        batch in 1usize..40,
        seed in any::<u64>(),
        exponent in -20i32..20,
    ) {
        check(codec, d_output, d_input, batch, seed, 2f32.powi(exponent));
    }
}

#[test]
fn the_relative_squared_error_is_that_of_15_bits() {
    for codec in CODECS {
        let (d_output, d_input, batch) = (64, 1024, 32);
        let form = form(codec, d_output, d_input, 4);
        let (w, x) = (weight(&form), activations(batch * d_input, 5));
        for simd in levels() {
            let (mut error, mut power) = (0.0, 0.0);
            for (x, y) in x.chunks_exact(d_input).zip(multiply(&form, simd, &x).chunks_exact(d_output)) {
                for (w, y) in w.chunks_exact(d_input).zip(y) {
                    let expected: f64 = w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum();
                    error += (f64::from(*y) - expected).powi(2);
                    power += expected * expected;
                }
            }
            assert!(error / power < 1e-7, "{codec} {simd:?}: {:e}", error / power);
        }
    }
}

#[test]
fn blocks_with_an_outlier_keep_its_product_exact() {
    // One column holds all of a row's power: the step is that of 16 bits, and the sums are as large as they get.
    // These codecs' weights are integers themselves.
    for codec in ["trellis:4", "lapped:2"] {
        let form = form(codec, 64, 512, 2);
        let w = weight(&form);
        let mut x = vec![1e-6; 512];
        x[300] = 1000.0;
        for simd in levels() {
            for (w, y) in w.chunks_exact(512).zip(multiply(&form, simd, &x)) {
                let expected = w[300] * 1000.0;
                assert!((f64::from(y) - expected).abs() <= 1e-3, "{codec} {simd:?}: {y} for {expected}");
            }
        }
    }
}

#[test]
fn sums_of_the_largest_integers_do_not_overflow() {
    // All weights of a row equal and all activations: the norms are as large as they get, and no sign cancels.
    for codec in ["lapped:2", "lapped:4", "additive:4", "trellis:4", "trellis:2", "uniform:8"] {
        let mut form = form(codec, 32, 1024, 1);
        form.codes.fill(0x7777_7777);
        let w = weight(&form);
        for sign in [1.0, -1.0] {
            for simd in levels() {
                for (w, y) in w.chunks_exact(1024).zip(multiply(&form, simd, &[sign * 3.0f32; 1024])) {
                    let expected: f64 = w.iter().sum::<f64>() * 3.0 * f64::from(sign);
                    let size: f64 = w.iter().map(|w| w.abs()).sum::<f64>() * 3.0;
                    assert!((f64::from(y) - expected).abs() <= 1e-4 * size, "{codec} {simd:?}: {y} for {expected}");
                }
            }
        }
    }
}

#[test]
fn dictionaries_of_any_size_are_rounded() {
    for factor in [1e-6, 0.3, 1e5] {
        let mut form = form("lapped:2", 40, 300, 3);
        form.dictionary.iter_mut().for_each(|value| *value *= factor);
        let (w, x) = (weight(&form), activations(300, 4));
        let size = norm(w[..300].iter().copied()) * norm(x.iter().map(|x| f64::from(*x)));
        for simd in levels() {
            for (w, y) in w.chunks_exact(300).zip(multiply(&form, simd, &x)) {
                let expected: f64 = w.iter().zip(&x).map(|(w, x)| w * f64::from(*x)).sum();
                assert!((f64::from(y) - expected).abs() <= 2e-3 * size, "{factor} {simd:?}: {y} for {expected}");
            }
        }
    }
}

#[test]
fn rows_depend_neither_on_their_neighbours_nor_on_their_place() {
    for codec in CODECS {
        let (n, m) = (300, 70);
        let form = form(codec, m, n, 3);
        let sound = activations(21 * n, 2);
        let mut x = sound.clone();
        x[n + 9] = f32::NAN;
        x[2 * n..3 * n].iter_mut().for_each(|x| *x *= 1e-36);
        x[3 * n] = f32::INFINITY;
        for simd in levels() {
            let (found, undisturbed) = (multiply(&form, simd, &x), multiply(&form, simd, &sound));
            for row in 0..21 {
                let (row_x, found) = (&x[row * n..][..n], &found[row * m..][..m]);
                let alone = multiply(&form, simd, row_x);
                let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
                assert!(!found.iter().zip(&alone).any(differ), "{codec} {simd:?}, row {row} by itself");
                if [1, 3].contains(&row) {
                    assert!(found.iter().all(|y| !y.is_finite()), "{codec} {simd:?}, row {row}: {found:?}");
                } else if row != 2 {
                    assert_eq!(found, &undisturbed[row * m..][..m], "{codec} {simd:?}, row {row}");
                }
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_passed_on() {
    for codec in ["lapped:2", "trellis:2", "matching:2:patterns=6"] {
        for value in [f32::NAN, f32::INFINITY] {
            let mut form = form(codec, 40, 64, 3);
            form.dictionary.fill(value);
            for simd in levels() {
                let y = multiply(&form, simd, &activations(64, 2));
                assert!(y.iter().all(|y| !y.is_finite()), "{codec} {simd:?} {value}: {y:?}");
            }
        }
    }
}

#[test]
fn activations_are_rounded_within_the_norm_of_a_block() {
    for simd in levels() {
        for scale in [1e-29f32, 1.0, 1e37] {
            let x: Vec<f32> = activations(3 * 700, 1).iter().map(|x| x * scale).collect();
            let rows = Rows::new(simd, &x, 700, false);
            for (b, x) in x.chunks_exact(700).enumerate() {
                for (start, x) in (0..).step_by(DEPTH).zip(x.chunks(DEPTH)) {
                    let integers = &rows.block(start)[b][..x.len()];
                    assert!(norm(integers.iter().map(|i| f64::from(*i))) < f64::from(1u32 << 31).sqrt());
                    for (x, integer) in x.iter().zip(integers) {
                        assert!((x / rows.steps()[b] - f32::from(*integer)).abs() < 0.51, "{x} as {integer}");
                    }
                }
            }
        }
    }
}
