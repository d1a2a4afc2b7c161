//! Error feedback against a brute-force optimum, against an independent definition, and without anything to feed back.

mod common;

use approx::{abs_diff_eq, assert_relative_eq};
use common::encode;
use pixel_core::codec::FAMILIES;
use pixel_core::encode::{BlockOrder, Extracted, FeedbackOptions, condition};
use pixel_core::math::Exponent;
use pixel_core::math::metrics::ErrorSums;
use pixel_core::{CodecSpec, CodingSpec, Encoder, Matrix, Moments, PackedWeight, Shape};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

fn gaussian(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
}

/// Moments of inputs that share a strong common part, as real ones do.
fn correlated(n: usize, seed: u64) -> Moments {
    let samples = 4 * n;
    let (noise, common) = (gaussian(samples * n, seed), gaussian(samples, seed + 1));
    let inputs: Vec<f32> = noise.iter().enumerate().map(|(i, x)| x + 2.0 * common[i / n]).collect();
    Moments::of_inputs(n, &inputs)
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Matrix {
    Matrix::new(Shape::new(rows, cols).unwrap(), gaussian(rows * cols, seed)).unwrap()
}

/// A weight that conditioning leaves as it is: the root mean square of its largest row is 1.5.
fn conditioned(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut weight = matrix(rows, cols, seed);
    let power = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>() / cols as f32;
    let largest = weight.as_slice().chunks(cols).map(power).fold(0.0, f32::max).sqrt();
    weight.as_mut_slice().iter_mut().for_each(|w| *w *= 1.5 / largest);
    weight
}

fn loss(moments: &Moments, weight: &Matrix, packed: &PackedWeight) -> ErrorSums {
    moments.output_error(weight.as_ref(), packed.synthesize().as_ref())
}

/// `codec` with feedback in backward order and no damping.
fn backward(codec: &CodecSpec) -> CodingSpec {
    let options = FeedbackOptions { damping: Some(0.0), order: BlockOrder::Backward };
    CodingSpec::new(codec.clone()).with_feedback(Some(options))
}

#[test]
fn uncorrelated_inputs_give_the_plain_codec_to_the_byte() {
    for family in FAMILIES {
        for (rotation, [rows, cols]) in [(None, [40, 48]), (Some(7), [40, 48]), (Some(7), [33, 50])] {
            let weight = matrix(rows, cols, 3);
            let codec = CodecSpec::new(family.name(), family.rates()[1]);
            let spec = CodingSpec::new(codec.clone()).with_rotation(rotation);
            let (plain, expected) = encode(&weight, &spec, None);
            let (packed, outcome) = encode(&weight, &spec, Moments::identity(cols));
            for ((_, a), (_, b)) in packed.streams().zip(plain.streams()) {
                assert_eq!(a, b, "{codec} {rotation:?}");
            }
            assert!(expected.output.is_none());
            let error = expected.weight.error;
            assert_relative_eq!(outcome.weight.error, error, epsilon = 0.0, max_relative = 1e-9);
            let output = outcome.output.unwrap();
            assert_relative_eq!(output.sums.error, error, epsilon = 0.0, max_relative = 1e-6);
            assert_eq!(output.retries, 0);
        }
    }
}

/// The levels of the plain codec for one row of at most eight weights: it fits its grid before any feedback.
fn grid(weight: &Matrix, spec: &CodecSpec) -> Vec<f32> {
    let (plain, _) = encode(weight, &spec.clone().into(), None);
    let [_, scales, zeros] = &plain.codes().streams[..] else { panic!("three streams") };
    let zero = (zeros.words()[0] & 3) as f32;
    (0..4).map(|level| scales.halves()[0].to_f32() * (level as f32 - zero)).collect()
}

#[test]
fn tiny_weights_come_close_to_the_best_of_all_codes() {
    let spec: CodecSpec = "uniform:2:group=8".parse().unwrap();
    let (mut best, mut fed_back, mut plain, mut others) = (0.0, 0.0, 0.0, 0);
    for seed in 0..200 {
        let n = 5;
        let weight = conditioned(1, n, 10 * seed);
        let moments = correlated(n, 10 * seed + 1);
        let levels = grid(&weight, &spec);
        let of = |codes: usize| {
            let values = (0..n).map(|i| levels[codes >> (2 * i) & 3]).collect();
            let candidate = Matrix::new(weight.shape(), values).unwrap();
            moments.output_error(weight.as_ref(), candidate.as_ref()).error
        };
        let optimum = (0..1 << (2 * n)).map(of).fold(f64::INFINITY, f64::min);
        let (packed, _) = encode(&weight, &backward(&spec), moments.clone());
        let found = loss(&moments, &weight, &packed).error;
        assert!(found >= optimum * (1.0 - 1e-6), "case {seed}: {found} is below the optimum {optimum}");
        let (rounded, _) = encode(&weight, &spec.clone().into(), None);
        let rounded = loss(&moments, &weight, &rounded).error;
        best += optimum;
        fed_back += found;
        plain += rounded;
        others += usize::from(found > rounded);
    }
    // Greedy, so not the optimum; with the sign turned round it is far worse than no feedback at all.
    assert!(fed_back < 1.6 * best, "{fed_back} for an optimum of {best}");
    assert!(plain > 2.5 * best, "{plain} for an optimum of {best}");
    assert!(others < 40, "{others} of 200 are worse than rounding");
}

/// Solves `a·x = b` by elimination with pivots, `[n, n]`.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for i in 0..n {
        let pivot = (i..n).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).unwrap();
        a.swap(i, pivot);
        b.swap(i, pivot);
        for row in i + 1..n {
            let factor = a[row][i] / a[i][i];
            #[allow(clippy::needless_range_loop, reason = "two rows are read at the same column")]
            for col in i..n {
                a[row][col] -= factor * a[i][col];
            }
            b[row] -= factor * b[i];
        }
    }
    for i in (0..n).rev() {
        b[i] = (b[i] - (i + 1..n).map(|j| a[i][j] * b[j]).sum::<f64>()) / a[i][i];
    }
    b
}

/// The definition, in O(n⁴): before a block is coded, all columns not yet coded are moved to where the loss would be
/// least if they could take any value, given the errors already made; the block is coded from there.
fn defined(weight: &Matrix, moments: &Moments, spec: &CodecSpec) -> Vec<f32> {
    let shape = weight.shape();
    let (m, n) = (shape.d_output(), shape.d_input());
    let codec = spec.build().unwrap();
    let width = codec.block_width(shape);
    let mut encoder = codec.encoder(weight.as_ref()).into_blocks().unwrap();
    let mut decoded = vec![0.0f32; m * n];
    for block in (0..n.div_ceil(width)).rev() {
        let (start, end) = (block * width, (block * width + width).min(n));
        let mut values = vec![0.0f32; m * width];
        for row in 0..m {
            // Σ_U E_u·H_uv = −Σ_K E_k·H_kv for every v that is not yet coded.
            let free: Vec<Vec<f64>> = (0..end).map(|u| (0..end).map(|v| moments.at(v, u)).collect()).collect();
            let error = |k: usize| f64::from(weight.as_slice()[row * n + k]) - f64::from(decoded[row * n + k]);
            let fixed = (0..end).map(|v| -(end..n).map(|k| error(k) * moments.at(k, v)).sum::<f64>()).collect();
            let best = solve(free, fixed);
            for col in start..end {
                values[row * width + col - start] = (f64::from(weight.as_slice()[row * n + col]) - best[col]) as f32;
            }
        }
        let mut found = values.clone();
        encoder.encode_block(block, &values, &mut found);
        for row in 0..m {
            decoded[row * n + start..row * n + end].copy_from_slice(&found[row * width..][..end - start]);
        }
    }
    decoded
}

#[test]
fn every_block_is_coded_from_where_the_definition_moves_it() {
    // Blocks of one, four and eight columns; more of them than are gathered, and a ragged one at the end.
    for (spec, [rows, cols]) in
        [("uniform:3:group=8", [6, 150]), ("matching:4:tile=4:learned=0", [8, 38]), ("trellis:3:window=10", [32, 150])]
    {
        let spec: CodecSpec = spec.parse().unwrap();
        let weight = conditioned(rows, cols, 5);
        let moments = correlated(cols, 6);
        let scaling = spec.build().unwrap().row_scaling();
        let unscaled = condition(weight.clone(), scaling, None, Extracted::default()).unwrap();
        let expected = defined(&unscaled.weight, &moments, &spec);
        let (packed, _) = encode(&weight, &backward(&spec), moments);
        assert_eq!(packed.header().exponent, Exponent::ZERO);
        let scale = |row: usize| packed.row_scales().get(row).map_or(1.0, |scale| scale.to_f32());
        let found = packed.synthesize();
        let is_same = |&i: &usize| abs_diff_eq!(found.as_slice()[i], scale(i / cols) * expected[i], epsilon = 1e-4);
        let same = (0..rows * cols).filter(is_same).count();
        // A target on the border of two codes may fall to either side; from there on the two differ.
        assert!(same as f64 >= 0.9 * (rows * cols) as f64, "{spec}: {same} of {} alike", rows * cols);
    }
}

#[test]
fn every_codec_gains_on_correlated_inputs() {
    for family in FAMILIES {
        let spec = CodingSpec::new(CodecSpec::new(family.name(), family.rates()[1]));
        let spec = spec.with_rotation(family.rotates().then_some(1));
        let weight = matrix(32, 96, 8);
        let moments = correlated(96, 9);
        let (plain, _) = encode(&weight, &spec, None);
        let (packed, outcome) = encode(&weight, &spec, moments.clone());
        let (before, after) = (loss(&moments, &weight, &plain), loss(&moments, &weight, &packed));
        assert!(after.relative_mse() < 0.75 * before.relative_mse(), "{}: {before:?} {after:?}", spec.codec);
        let reported = outcome.output.unwrap().sums;
        assert_relative_eq!(reported.relative_mse(), after.relative_mse(), epsilon = 0.0, max_relative = 1e-2);
        assert_relative_eq!(reported.power, after.power, epsilon = 0.0, max_relative = 1e-4);
        assert_eq!(packed.num_bytes(), plain.num_bytes());
    }
}

#[test]
fn energetic_inputs_are_coded_first_where_nothing_is_rotated() {
    let n = 64;
    let mut inputs = gaussian(256 * n, 2);
    // The last columns carry little, so that backward order begins with them.
    inputs.iter_mut().enumerate().for_each(|(i, x)| *x = *x / (1.0 + (i % n) as f32) + 0.02);
    let moments = Moments::of_inputs(n, &inputs);
    let weight = matrix(32, n, 4);
    let codec: CodecSpec = "uniform:2:group=64".parse().unwrap();
    let error = |order| {
        let options = FeedbackOptions { order, ..Default::default() };
        let spec = CodingSpec::new(codec.clone()).with_feedback(Some(options));
        let (_, outcome) = encode(&weight, &spec, moments.clone());
        outcome.output.unwrap().sums.error
    };
    assert_eq!(error(BlockOrder::Automatic), error(BlockOrder::Activation));
    assert!(error(BlockOrder::Activation) < error(BlockOrder::Backward));
}

#[test]
fn moments_that_are_singular_are_damped_until_they_are_not() {
    // One input direction only, and nothing added: not positive definite.
    let n = 24;
    let moments = Moments::of_inputs(n, &vec![1.0; n]);
    let weight = matrix(16, n, 1);
    let options = FeedbackOptions { damping: Some(0.0), ..Default::default() };
    let spec = CodingSpec::new("trellis:2:window=10".parse().unwrap()).with_feedback(Some(options));
    let rotated = spec.clone().with_rotation(Some(1));
    let (_, outcome) = encode(&weight, &rotated, moments);
    let output = outcome.output.unwrap();
    assert!(output.sums.relative_mse() < 1e-3, "{output:?}");
    assert!(output.retries > 0 && output.damping >= 1e-6, "{output:?}");
    let (_, zero) = encode(&weight, &rotated, Moments::of_inputs(n, &vec![0.0; n]));
    assert_eq!(zero.output.unwrap().sums, ErrorSums::default());
    assert!(zero.weight.relative_mse() < 0.2, "inputs never seen fall back to the plain codec");

    let error = Encoder::new(&spec).with_moments(Moments::identity(23)).encode(weight).unwrap_err();
    assert!(error.to_string().contains("inputs of width 24, the statistics are of width 23"), "{error}");
}
