//! Every product, for every set of instructions, against a plain one in f64.

use super::Arithmetic;
use crate::CodingSpec;
use crate::codec::{CodecLayout, CodecSpec, Readable};
use crate::math::Exponent;
use crate::math::rotation::split_mix;
use crate::math::simd::{Simd, SimdLevel};
use crate::matrix::Shape;
use crate::synthesis::KernelForm;
use proptest::prelude::*;

pub(super) const CODECS: [&str; 30] = [
    "trellis:1",
    "trellis:1.5",
    "trellis:2",
    "trellis:2:window=12",
    "trellis:2.5",
    "trellis:2.5:window=11",
    "trellis:3",
    "trellis:3:window=12",
    "trellis:4",
    "additive:1",
    "additive:1.5",
    "additive:2",
    "additive:3",
    "additive:4",
    "lapped:1",
    "lapped:1.5",
    "lapped:2",
    "lapped:2.5",
    "lapped:3",
    "lapped:4",
    "uniform:3:group=8",
    "uniform:2",
    "uniform:3:group=32",
    "uniform:5:group=16",
    "uniform:4",
    "uniform:4:group=128",
    "uniform:6",
    "uniform:8",
    "uniform:8:group=80",
    "matching:2:patterns=6",
];

pub(super) fn form(codec: &str, d_output: usize, d_input: usize, seed: u64) -> KernelForm {
    let codec: CodecSpec = codec.parse().unwrap();
    let shape = Shape::new(d_output, d_input).unwrap();
    let header = CodingSpec::new(codec).header(shape, Exponent::ZERO);
    let mut count = 0;
    let words = || {
        count += 1;
        split_mix(seed, count) as u32
    };
    let mut form = KernelForm::random(&header, 1.0, words).unwrap();
    for (i, scale) in form.scales.iter_mut().enumerate() {
        *scale *= 0.5 + (split_mix(!seed, i as u64) >> 40) as f32 / (1u64 << 24) as f32;
    }
    form
}

pub(super) fn activations(len: usize, seed: u64) -> Vec<f32> {
    (0..len).map(|i| (split_mix(seed, i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// The weight by the layout's own decoder, scaled, in f64.
pub(super) fn weight(form: &KernelForm) -> Vec<f64> {
    let (layout, n) = (form.layout, form.layout.shape().d_input());
    let (mut rows, tables) = (vec![0.0; layout.shape().num_weights()], layout.tables());
    let readable = Readable { layout: &layout, tables: &tables, words: &form.codes, dictionary: &form.dictionary };
    for (band, rows) in rows.chunks_mut(layout.band_height() * n).enumerate() {
        let simd = Simd::at_most(SimdLevel::Portable);
        readable.decode_columns(simd, band, 0..n, rows);
    }
    let scale = |i: usize| form.scales[i / n * layout.scales_per_row() + i % n / layout.scale_group()];
    rows.iter().enumerate().map(|(i, value)| f64::from(*value) * f64::from(scale(i))).collect()
}

/// How far an output may be from the definition.
fn tolerance(form: &KernelForm, codec: &str, w: &[f64], x: &[f32], arithmetic: Arithmetic, scale: f32) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|v| v * v).sum::<f64>().sqrt();
    let (w_norm, x_norm) = (norm(&mut w.iter().copied()), norm(&mut x.iter().map(|x| f64::from(*x))));
    let peak = x.iter().fold(0f64, |peak, x| peak.max(f64::from(x.abs())));
    // The terms of a weight may cancel, so that their sums round more than the weight's norm says.
    let terms = if codec.starts_with("trellis") { 1.0 } else { 4.0 };
    let rounding = terms * 16.0 * f64::from(f32::EPSILON) * (w.len() as f64).sqrt() * x_norm * w_norm + 1e-30;
    match arithmetic {
        Arithmetic::F32 => rounding,
        Arithmetic::Integer if codec.starts_with("trellis") => {
            rounding + w.iter().map(|w| w.abs()).sum::<f64>() * peak / 65534.0
        }
        Arithmetic::Integer if codec.starts_with("uniform") => {
            rounding + w.iter().map(|w| w.abs()).sum::<f64>() * peak / 65278.0
        }
        Arithmetic::Integer => {
            let CodecLayout::Nibble(layout) = form.layout else { return rounding };
            // Half a step for each table, the step that of the largest possible value.
            let norm_of = |values: &[f32]| norm(&mut values.iter().map(|x| f64::from(*x)));
            let window = |t| x.iter().skip(layout.start(t)).take(layout.span()).copied().collect::<Vec<_>>();
            let windows = (0..layout.fields()).map(|t| norm_of(&window(t))).fold(0.0, f64::max);
            let patterns = form.dictionary.chunks_exact(layout.span()).map(norm_of).fold(0.0, f64::max);
            let step = windows * patterns / 32767.0;
            rounding + 0.51 * step * layout.fields() as f64 * f64::from(scale)
        }
    }
}

/// The same for panels, whatever the batch: both factors in steps of 16 bits, or of the norm of 256 values / 46300.
fn panels_tolerance(form: &KernelForm, weight: &[f64], x: &[f32], row: usize, arithmetic: Arithmetic) -> f64 {
    if arithmetic == Arithmetic::F32 {
        return 0.0;
    }
    let (n, per_row) = (x.len(), form.layout.scales_per_row());
    let scale = |row: usize| {
        form.scales[row * per_row..][..per_row].iter().fold(0f64, |peak, scale| peak.max(f64::from(scale.abs())))
    };
    let norm = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>().sqrt();
    let step = |values: &[f64]| values.chunks(256).map(norm).fold(0.0, f64::max) * (2f64.sqrt() / 46300.0);
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let w_step = weight.chunks_exact(n).enumerate().map(|(row, w)| step(w) / scale(row)).fold(0.0, f64::max);
    let sum = |values: &[f64]| values.iter().map(|value| value.abs()).sum::<f64>();
    0.52 * (sum(&weight[row * n..][..n]) * step(&x) + 2.0 * w_step * scale(row) * sum(&x))
}

fn check(codec: &str, d_output: usize, d_input: usize, batch: usize, seed: u64, magnitude: f32) {
    let form = form(codec, d_output, d_input, seed);
    let x: Vec<f32> = activations(batch * d_input, seed ^ 1).iter().map(|x| x * magnitude).collect();
    check_form(codec, &form, &x);
}

fn check_form(codec: &str, form: &KernelForm, x: &[f32]) {
    let (d_output, d_input) = (form.layout.shape().d_output(), form.layout.shape().d_input());
    let (weight, batch) = (weight(form), x.len() / d_input);
    for simd in Simd::available() {
        for arithmetic in [Arithmetic::F32, Arithmetic::Integer] {
            let slices = form.as_slices().with_simd(simd).with_arithmetic(arithmetic);
            let mut y = vec![f32::NAN; batch * d_output];
            slices.linear(x, &mut y);
            for (b, (x, y)) in x.chunks_exact(d_input).zip(y.chunks_exact(d_output)).enumerate() {
                for (row, (w, y)) in weight.chunks_exact(d_input).zip(y).enumerate() {
                    let expected: f64 = w.iter().zip(x).map(|(w, x)| w * f64::from(*x)).sum();
                    let bound =
                        tolerance(form, codec, w, x, arithmetic, form.scales[row * form.layout.scales_per_row()]);
                    let bound = bound.max(panels_tolerance(form, &weight, x, row, arithmetic));
                    let error = (f64::from(*y) - expected).abs();
                    assert!(
                        error <= bound,
                        "{codec} {d_output}×{d_input}, {simd:?}, {arithmetic:?}, batch row {b} of {batch}, \
                         output {row}: {y} for {expected}, off by {error:e} > {bound:e}"
                    );
                }
            }
        }
    }
}

#[test]
fn products_of_every_codec_and_batch_are_those_of_the_dense_weight() {
    for codec in CODECS {
        for batch in [1, 2, 3, 4, 7, 8, 9, 19, 65] {
            check(codec, 96, 200, batch, 5, 1.0);
            // Whole steps of every kernel.
            check(codec, 70, 192, batch, 8, 1.0);
        }
    }
}

#[test]
fn wide_and_tall_weights_are_multiplied() {
    // More columns than the integers of one chunk or the tables of one, more strips than a band.
    for codec in ["trellis:2", "trellis:4", "additive:2", "additive:1.5", "lapped:2", "lapped:2.5", "uniform:4"] {
        check(codec, 40, 4800, 2, 6, 1.0);
        check(codec, 1100, 64, 1, 7, 1.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn products_of_any_shape_are_those_of_the_dense_weight(
        codec in prop::sample::select(CODECS.to_vec()),
        d_output in 1usize..140,
        d_input in 1usize..300,
        batch in 1usize..11,
        seed in any::<u64>(),
        exponent in -20i32..20,
    ) {
        check(codec, d_output, d_input, batch, seed, 2f32.powi(exponent));
    }

    #[test]
    fn synthesis_is_the_same_to_the_bit_on_every_level(
        codec in prop::sample::select(CODECS.to_vec()),
        d_output in 1usize..140,
        d_input in 1usize..140,
        seed in any::<u64>(),
    ) {
        let form = form(codec, d_output, d_input, seed);
        let synthesize = |simd| {
            let mut out = vec![f32::NAN; d_output * d_input];
            form.as_slices().with_simd(simd).synthesize(&mut out);
            out
        };
        let expected = synthesize(Simd::at_most(SimdLevel::Portable));
        for simd in Simd::available() {
            prop_assert_eq!(synthesize(simd), expected.clone(), "{:?}", simd);
        }
    }
}

#[test]
fn the_integers_of_the_largest_weights_do_not_overflow() {
    // Every window the one with the largest sum of fields, every activation the largest.
    for codec in ["trellis:2", "trellis:4", "trellis:1"] {
        let mut form = form(codec, 32, 2048, 1);
        let hash = match form.layout {
            CodecLayout::Trellis(layout) => layout.hash,
            _ => unreachable!(),
        };
        // All windows of a string of equal nibbles are equal.
        let sum = |s: u32| hash.integers(s).iter().sum::<i32>();
        let nibble = (0..16u32).max_by_key(|nibble| sum(nibble * 0x1111).abs()).unwrap();
        form.codes.fill(nibble * 0x1111_1111);
        let w = weight(&form);
        for sign in [1.0, -1.0] {
            let x = vec![sign * 3.0f32; 2048];
            for simd in Simd::available() {
                let mut y = vec![0.0; 32];
                form.as_slices().with_simd(simd).linear(&x, &mut y);
                for (w, y) in w.chunks_exact(2048).zip(&y) {
                    let expected: f64 = w.iter().sum::<f64>() * f64::from(x[0]);
                    let size: f64 = w.iter().map(|w| w.abs()).sum::<f64>() * 3.0;
                    assert!((f64::from(*y) - expected).abs() <= 1e-4 * size, "{codec}, {simd:?}: {y} for {expected}");
                }
            }
        }
    }
}

#[test]
fn the_integers_of_the_largest_indices_do_not_overflow() {
    for codec in ["uniform:8:group=1024", "uniform:8", "uniform:6:group=1024"] {
        let mut form = form(codec, 17, 2048, 1);
        let CodecLayout::Uniform(layout) = form.layout else { unreachable!("{codec}") };
        let (codes, zeros) = form.codes.split_at_mut(layout.code_words());
        codes.fill(u32::MAX);
        zeros.fill(0);
        for (batch, sign) in [(1, 1.0), (8, -1.0)] {
            check_form(codec, &form, &vec![sign * 3.0; batch * 2048]);
        }
    }
}

#[test]
fn levels_that_training_has_moved_are_multiplied_as_they_are() {
    for codec in ["uniform:8", "uniform:4"] {
        let mut form = form(codec, 40, 192, 4);
        form.dictionary[3] += 40.0;
        for batch in [1, 4] {
            check_form(codec, &form, &activations(batch * 192, 5));
        }
    }
}

#[test]
fn weights_wider_than_the_sums_of_16_bit_integers_are_multiplied() {
    // 131 072 fields at 4 bits and at 2: the sum of the lookups exceeds 32 bits.
    let nibbles = [("additive:4", 131_080), ("additive:2", 262_160), ("lapped:4", 131_080)];
    let wide = nibbles.into_iter().chain([("trellis:2", 262_144), ("uniform:4", 262_144)]);
    for (codec, d_input) in wide {
        check(codec, 8, d_input, 1, 9, 1.0);
    }
    // With the rows from which VBMI rounds tables.
    check("additive:4", 256, 131_080, 1, 9, 1.0);
}

#[test]
fn a_row_gives_what_it_gives_by_itself_whatever_its_neighbours_are() {
    for codec in CODECS {
        for d_output in [40, 288] {
            let (n, form) = (72, form(codec, d_output, 72, 3));
            for simd in Simd::available() {
                let linear = |x: &[f32]| {
                    let mut y = vec![0.0; x.len() / n * d_output];
                    form.as_slices().with_simd(simd).linear(x, &mut y);
                    y.iter().map(|y| y.to_bits()).collect::<Vec<_>>()
                };
                let sound = activations(5 * n, 2);
                // Three rows that cannot be rounded: not a number, infinite, vanishing.
                let mut x = sound.clone();
                x[n + 9] = f32::NAN;
                x[2 * n..3 * n].iter_mut().for_each(|x| *x *= 1e-36);
                x[3 * n] = f32::INFINITY;
                let (found, undisturbed) = (linear(&x), linear(&sound));
                for row in 0..5 {
                    let found = &found[row * d_output..][..d_output];
                    let alone = linear(&x[row * n..][..n]);
                    // NaN equals nothing: only whether a value is NaN is compared.
                    let values = |bits: &[u32]| bits.iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<_>>();
                    let differ = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits() && !(a.is_nan() && b.is_nan());
                    let (values_found, alone) = (values(found), values(&alone));
                    assert!(!values_found.iter().zip(&alone).any(differ), "{codec} {simd:?}, row {row} by itself");
                    if [0, 4].contains(&row) {
                        assert_eq!(found, &undisturbed[row * d_output..][..d_output], "{codec} {simd:?}, row {row}");
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_passed_on() {
    for codec in CODECS {
        let form = form(codec, 40, 64, 3);
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for simd in Simd::available() {
                let mut x = activations(64, 2);
                x[9] = value;
                let mut y = vec![0.0; 40];
                form.as_slices().with_simd(simd).linear(&x, &mut y);
                assert!(y.iter().all(|y| !y.is_finite()), "{codec} {simd:?} {value}: {y:?}");
            }
        }
    }
}

#[test]
fn inputs_of_zero_give_zero() {
    for codec in CODECS {
        let form = form(codec, 40, 64, 3);
        for simd in Simd::available() {
            let mut y = vec![1.0; 80];
            form.as_slices().with_simd(simd).linear(&[0.0; 128], &mut y);
            assert!(y.iter().all(|y| *y == 0.0), "{codec} {simd:?}: {y:?}");
        }
    }
}
