//! The hybrid on weights whose answer is known: spikes are found and pay, noise is left alone, the best iterate is
//! kept.

use approx::relative_eq;
use pixel_core::plan::LowRankFitter;
use pixel_core::{
    CodingSpec, ConfigError, FactorStorage, FeedbackOptions, LowRankSpec, Matrix, Moments, Shape, WeightError,
};
use pixel_experimental::svd::{FaerSvd, Svd, SvdError, SvdSolver};
use pixel_experimental::{
    FitStep, HybridFitter, RankChoice, RateChoice, SVDHybridCompressor, auto_rank, break_even, fit,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use std::sync::Arc;

fn gaussian(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..rows * cols).map(|_| rng.sample::<f32, _>(StandardNormal)).collect();
    Matrix::new(Shape::new(rows, cols).unwrap(), values).unwrap()
}

/// Unit noise and a part of `rank` that holds `share` of the energy.
fn spike(rows: usize, cols: usize, rank: usize, share: f64) -> Matrix {
    let mut weight = gaussian(rows, cols, 1);
    let part = pixel_core::LowRank { up: gaussian(rows, rank, 2), down: gaussian(rank, cols, 3) };
    let factor = (share / (1.0 - share) / rank as f64).sqrt() as f32;
    part.add_scaled(&mut weight, factor);
    weight
}

/// Inputs of which `strong` directions hold most of the power.
fn moments(n: usize, strong: usize, factor: f32) -> Moments {
    let mut inputs = gaussian(4 * n, n, 8);
    let part = pixel_core::LowRank { up: gaussian(4 * n, strong, 9), down: gaussian(strong, n, 10) };
    part.add_scaled(&mut inputs, factor);
    Moments::of_inputs(n, inputs.as_slice())
}

fn compressor(rank: RankChoice) -> SVDHybridCompressor {
    SVDHybridCompressor { rank, codec: "trellis:2:window=10".parse().unwrap(), ..Default::default() }
}

/// Error feedback for inputs that are known.
const FEEDBACK: FeedbackOptions = FeedbackOptions { damping: Some(0.01), ..FeedbackOptions::DEFAULT };

/// A rotated weight by `codec` with a part of `rank`, with error feedback or without.
fn coding(codec: &str, rank: usize, feedback: bool) -> CodingSpec {
    CodingSpec::new(codec.parse().unwrap())
        .with_rotation(Some(0))
        .with_low_rank(Some(LowRankSpec { rank, storage: FactorStorage::Int8 }))
        .with_feedback(feedback.then_some(FEEDBACK))
}

#[test]
fn noise_is_left_to_the_patterns() {
    let weight = gaussian(256, 256, 1);
    for inputs in [None, Some(moments(256, 2, 1.0))] {
        let found = compressor(RankChoice::Auto).compress(&weight, inputs.as_ref()).unwrap();
        let verdict = found.verdict.unwrap();
        assert_eq!((found.svd_rank, verdict.measured), (0, None), "{verdict:?}");
        assert!(verdict.promised > verdict.break_even);
        let never = compressor(RankChoice::Never).compress(&weight, inputs.as_ref()).unwrap();
        assert!(found.packed.streams().eq(never.packed.streams()));
    }
}

/// A part of all directions would leave nothing but for the rounding of its factors: it is no bargain.
#[test]
fn a_part_of_full_rank_promises_no_more_than_its_rounding() {
    for (rows, cols, storage) in
        [(64, 96, FactorStorage::Int8), (8, 400, FactorStorage::Int8), (80, 64, FactorStorage::F16)]
    {
        let compressor = SVDHybridCompressor { storage, ..compressor(RankChoice::Auto) };
        let verdict = compressor.compress(&gaussian(rows, cols, 1), None).unwrap().verdict.unwrap();
        assert_eq!((verdict.rank, verdict.measured), (0, None), "{verdict:?}");
    }
}

#[test]
fn a_spike_is_found_with_its_rank_and_pays() {
    let weight = spike(512, 512, 4, 0.6);
    for inputs in [None, Some(moments(512, 2, 1.0))] {
        let found = compressor(RankChoice::Auto).compress(&weight, inputs.as_ref()).unwrap();
        let never = compressor(RankChoice::Never).compress(&weight, inputs.as_ref()).unwrap();
        assert_eq!(found.svd_rank, 4, "{:?}", found.verdict);
        let loss = |w: &pixel_experimental::HybridWeight| w.output_loss.unwrap_or(w.reconstruction_error.powi(2));
        let extra = found.packed.bits_per_weight() - never.packed.bits_per_weight();
        let ratio = loss(&found) / loss(&never);
        assert!(ratio < 0.55 * break_even(extra), "{ratio} {extra}");
        // What is reported is what a dense comparison finds.
        let dense = compressor(RankChoice::Auto).decompress(&found);
        let error = pixel_core::math::metrics::relative_error(weight.as_slice(), dense.as_slice());
        assert!(relative_eq!(error, found.reconstruction_error, max_relative = 1e-3), "{error}");
        if let Some(inputs) = &inputs {
            let measured = inputs.output_error(weight.as_ref(), dense.as_ref()).relative_mse();
            assert!(relative_eq!(measured, found.output_loss.unwrap(), max_relative = 1e-3), "{measured}");
        }
        let sizes = found.size_breakdown;
        assert_eq!(sizes.total(), found.packed.num_bytes());
        assert_eq!(sizes.factors, 4 * (512 + 512) + 2 * 4 * (4 + 4));
        assert_eq!((sizes.indices, sizes.scales, sizes.protected), (512 * 512 / 4, 2 * 512, 0));
        assert_eq!(found.num_patterns, never.num_patterns);
    }
}

/// Without feedback the outputs feel errors along the inputs' strong directions; a part fitted to the error takes them
/// away.
#[test]
fn without_feedback_strong_inputs_make_a_part_pay() {
    let (weight, inputs) = (gaussian(512, 512, 1), moments(512, 3, 2.0));
    let without = |rank| SVDHybridCompressor { feedback: None, ..compressor(rank) };
    let found = without(RankChoice::Auto).compress(&weight, Some(&inputs)).unwrap();
    let never = without(RankChoice::Never).compress(&weight, Some(&inputs)).unwrap();
    assert!((2..=4).contains(&found.svd_rank), "{:?}", found.verdict);
    let extra = found.packed.bits_per_weight() - never.packed.bits_per_weight();
    let ratio = found.output_loss.unwrap() / never.output_loss.unwrap();
    assert!(ratio < 0.5 * break_even(extra), "{ratio} {extra}");
    // The unweighted decomposition, which is best without moments, is no match.
    let blind = compressor(RankChoice::Fixed(found.svd_rank)).compress(&weight, None).unwrap();
    let loss = inputs.output_error(weight.as_ref(), blind.packed.synthesize().as_ref()).relative_mse();
    assert!(loss > 3.0 * found.output_loss.unwrap(), "{loss}");
}

#[test]
fn the_best_iterate_is_kept() {
    let (weight, inputs) = (spike(128, 192, 2, 0.3), moments(192, 2, 1.0));
    for (inputs, feedback) in [(None, false), (Some(&inputs), false), (Some(&inputs), true)] {
        let spec = coding("additive:2", 2, feedback);
        let found = fit(&weight, &spec, inputs, 3, &FaerSvd).unwrap();
        let loss = found.outcome.output.map_or(found.outcome.weight, |output| output.sums).relative_mse();
        let least = found.steps.iter().map(|(_, loss)| *loss).fold(f64::INFINITY, f64::min);
        assert_eq!(loss, least, "{:?}", found.steps);
        let dense = found.packed.synthesize();
        let measured = match inputs {
            Some(inputs) => inputs.output_error(weight.as_ref(), dense.as_ref()),
            None => pixel_core::math::metrics::ErrorSums::between(weight.as_slice(), dense.as_slice()),
        };
        assert!(relative_eq!(measured.relative_mse(), loss, max_relative = 1e-3), "{measured:?} {loss}");
        // Refitting the factors to given codes never makes it worse but for their rounding.
        for pair in found.steps.windows(2) {
            if let [(FitStep::Codes, before), (FitStep::Factors, after)] = pair {
                assert!(*after < 1.01 * before, "{:?}", found.steps);
            }
        }
        // And the whole is better than the start alone.
        let one = fit(&weight, &spec, inputs, 0, &FaerSvd).unwrap();
        let start = one.outcome.output.map_or(one.outcome.weight, |output| output.sums).relative_mse();
        assert!(loss <= start, "{loss} {start}");
    }
}

/// The weighted part is the optimum: no other of its rank, among random changes, does better.
#[test]
fn the_weighted_part_is_the_best_of_its_rank() {
    let (weight, inputs) = (gaussian(24, 32, 1), moments(32, 3, 2.0));
    let spec = coding("uniform:8", 3, false).with_rotation(None);
    let fitter = HybridFitter { solver: Arc::new(FaerSvd), rounds: 0 };
    let left = fitter.residual(weight.clone(), &spec, Some(inputs.clone())).unwrap();
    let loss = |left: &Matrix| inputs.output_error(left.as_ref(), Matrix::zeros(left.shape()).as_ref()).power;
    let best = loss(&left);
    for seed in 0..40 {
        // Move within the matrices of rank 3: along a random direction in either factor.
        let part: Vec<f32> = weight.as_slice().iter().zip(left.as_slice()).map(|(w, l)| w - l).collect();
        let part = Matrix::new(weight.shape(), part).unwrap();
        let factors = FaerSvd.svd(part.as_ref(), 3).unwrap().into_low_rank();
        let mut moved = factors.clone();
        let (noise_up, noise_down) = (gaussian(24, 3, seed), gaussian(3, 32, seed + 100));
        moved.up.as_mut_slice().iter_mut().zip(noise_up.as_slice()).for_each(|(u, v)| *u += 0.05 * v);
        moved.down.as_mut_slice().iter_mut().zip(noise_down.as_slice()).for_each(|(d, v)| *d += 0.01 * v);
        let mut other = weight.clone();
        moved.add_scaled(&mut other, -1.0);
        assert!(loss(&other) > best, "seed {seed}: {} {best}", loss(&other));
    }
}

#[test]
fn thresholds_are_the_originals() {
    let weight = spike(96, 128, 3, 0.9);
    let codec: pixel_core::CodecSpec = "trellis:2:window=10".parse().unwrap();
    let by_thresholds = |energy, error| {
        let compressor = SVDHybridCompressor::with_thresholds(energy, error);
        SVDHybridCompressor { codec: codec.clone(), ..compressor }.compress(&weight, None).unwrap()
    };
    let found = by_thresholds(0.85, 0.05);
    assert_eq!(found.svd_rank, 3);
    assert!(found.reconstruction_error <= 0.05 && found.packed.header().codec.bits == 3.0, "{found:?}");
    let loose = by_thresholds(0.85, 0.2);
    assert!(loose.packed.header().codec.bits == 1.0 && loose.compression_ratio > found.compression_ratio);
    assert_eq!(by_thresholds(0.3, 0.3).svd_rank, 1);
    // Nothing reaches this: the highest rate is the best there is.
    assert_eq!(by_thresholds(0.85, 1e-9).packed.header().codec.bits, 4.0);
    // Half a bit is too little for a tile of 9 weights: the rates begin above it.
    let tiles = SVDHybridCompressor { codec: "matching:2:tile=3".parse().unwrap(), ..compressor(RankChoice::Never) };
    let found = SVDHybridCompressor { rate: RateChoice::Error(1.0), ..tiles }.compress(&weight, None).unwrap();
    assert_eq!(found.packed.header().codec.bits, 1.0);
}

#[test]
fn budgets_and_fixed_ranks_are_kept_to() {
    let weight = gaussian(64, 128, 4);
    let found = compressor(RankChoice::Fixed(5)).compress(&weight, None).unwrap();
    assert_eq!((found.svd_rank, found.packed.header().low_rank.unwrap().rank), (5, 5));
    let never = compressor(RankChoice::Never).compress(&weight, None).unwrap();
    let budget = compressor(RankChoice::Budget(0.5)).compress(&weight, None).unwrap();
    let extra = budget.packed.bits_per_weight() - never.packed.bits_per_weight();
    assert!(extra <= 0.5 && extra > 0.3, "{extra}");
    assert_eq!(compressor(RankChoice::Budget(0.01)).compress(&weight, None).unwrap().svd_rank, 0);
    // Sides shorter than the rank.
    assert_eq!(compressor(RankChoice::Fixed(5)).compress(&gaussian(1, 64, 1), None).unwrap().svd_rank, 1);
}

#[test]
fn protected_columns_are_left_to_themselves() {
    // One column of a hundredfold size, which either a part of rank one or protection takes away.
    let mut weight = gaussian(96, 128, 5);
    weight.as_mut_slice().chunks_mut(128).for_each(|row| row[17] *= 100.0);
    let with = |protect, rank| {
        let found = SVDHybridCompressor { protect, ..compressor(rank) }.compress(&weight, None).unwrap();
        (found.svd_rank, found.reconstruction_error)
    };
    let (auto, never) = (with(0, RankChoice::Auto), with(0, RankChoice::Never));
    assert!(auto.0 == 1 && auto.1 < 0.2 * never.1, "{auto:?} {never:?}");
    let protected = with(1, RankChoice::Auto);
    assert!(protected.0 == 0 && protected.1 < 0.2 * never.1, "{protected:?}");
    let both = with(1, RankChoice::Fixed(2));
    assert!(both.0 == 2 && both.1 < 1.01 * protected.1, "{both:?} {protected:?}");
}

#[test]
fn zeros_and_rows_and_bad_values_are_handled() {
    let auto = compressor(RankChoice::Auto);
    for (rows, cols) in [(1, 1), (1, 50), (50, 1), (7, 5)] {
        let zero = Matrix::zeros(Shape::new(rows, cols).unwrap());
        for rank in [RankChoice::Auto, RankChoice::Energy(0.85), RankChoice::Fixed(2)] {
            let found = compressor(rank).compress(&zero, None).unwrap();
            assert_eq!(found.packed.synthesize(), zero, "{rows}×{cols} {rank:?}");
        }
        let found = auto.compress(&gaussian(rows, cols, 1), None).unwrap();
        assert!(found.reconstruction_error < 1.0, "{rows}×{cols}");
    }
    let mut bad = gaussian(8, 8, 1);
    bad.as_mut_slice()[9] = f32::NAN;
    for rank in [RankChoice::Auto, RankChoice::Fixed(2), RankChoice::Never] {
        let error = compressor(rank).compress(&bad, None).unwrap_err().to_string();
        assert!(error.contains("row 1, column 1 is NaN"), "{error}");
    }
    let error = auto.compress(&gaussian(8, 8, 1), Some(&Moments::identity(9))).unwrap_err();
    assert!(matches!(error, WeightError::MomentsWidth { found: 9, .. }));
    for (rank, expected) in [
        (RankChoice::Energy(1.5), "svd_energy_threshold = 1.5 is outside 0 to 1"),
        (RankChoice::Budget(-1.0), "budget = -1 is outside 0 and above"),
        (RankChoice::Fixed(0), "rank = 0 is outside 1 and above"),
    ] {
        assert_eq!(compressor(rank).compress(&gaussian(8, 8, 1), None).unwrap_err().to_string(), expected);
    }
    let compressor = SVDHybridCompressor { rate: RateChoice::Error(f64::NAN), ..auto };
    assert!(compressor.compress(&gaussian(8, 8, 1), None).unwrap_err().to_string().contains("pattern_error_threshold"));
}

#[test]
fn a_model_that_cannot_be_compressed_is_an_error_that_names_the_weight() {
    let mut bad = gaussian(8, 8, 1);
    bad.as_mut_slice()[9] = f32::NAN;
    let weights = [("a", gaussian(8, 8, 2)), ("b", bad.clone()), ("c", bad)];
    let weights = weights.map(|(name, weight)| (name.to_owned(), weight)).into();
    let compress = || -> Result<usize, Box<dyn std::error::Error>> {
        Ok(compressor(RankChoice::Never).compress_model(&weights, &[].into())?.len())
    };
    let error = compress().unwrap_err();
    assert_eq!(error.to_string(), "tensor \"b\"");
    let source = error.source().map(ToString::to_string);
    assert_eq!(source.as_deref(), Some("the weight at row 1, column 1 is NaN"));
}

#[test]
fn a_request_without_a_part_has_nothing_to_fit() {
    let weight = gaussian(8, 9, 1);
    let spec = coding("additive:2", 1, false).with_low_rank(None);
    let error = fit(&weight, &spec, None, 1, &FaerSvd).unwrap_err();
    assert_eq!(error, WeightError::Config(ConfigError::Rank { rank: 0, shape: weight.shape() }));
}

/// Feedback makes up for errors that were measured under the damping that it reports; a part fitted afterwards keeps
/// it.
#[test]
fn the_damping_reported_is_that_of_the_codes() {
    let (weight, inputs) = (spike(64, 96, 2, 0.3), moments(96, 2, 1.0));
    for rounds in [0, 2] {
        for (feedback, damping) in [(true, FEEDBACK.damping.unwrap()), (false, 0.0)] {
            let found = fit(&weight, &coding("additive:2", 2, feedback), Some(&inputs), rounds, &FaerSvd).unwrap();
            let output = found.outcome.output.unwrap();
            assert_eq!((output.damping, output.retries), (damping, 0), "{rounds} {feedback} {:?}", found.steps);
        }
    }
}

#[test]
fn a_solver_that_fails_is_named() {
    #[derive(Debug)]
    struct Broken;
    impl SvdSolver for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }
        fn svd(&self, _: pixel_core::MatrixRef<'_>, _: usize) -> Result<Svd, SvdError> {
            Err(SvdError::Failed { solver: "broken", message: "gave up".into() })
        }
    }
    let spec = coding("additive:2", 1, false);
    let error = auto_rank(&gaussian(8, 8, 1), &spec, None, 1, &Broken).unwrap_err();
    assert_eq!(error.to_string(), "the singular value decomposition by broken failed: gave up");
}

/// A part that is measured to be no gain is refused, whatever its spectrum promises: here the vectors are not those
/// that the values belong to.
#[test]
fn a_promise_that_is_not_kept_is_refused() {
    #[derive(Debug)]
    struct Boastful;
    impl SvdSolver for Boastful {
        fn name(&self) -> &'static str {
            "boastful"
        }
        fn svd(&self, matrix: pixel_core::MatrixRef<'_>, rank: usize) -> Result<Svd, SvdError> {
            let other = gaussian(matrix.shape().d_output(), matrix.shape().d_input(), 77);
            let mut svd = FaerSvd.svd(other.as_ref(), rank)?;
            let energy: f64 = matrix.as_slice().iter().map(|&w| f64::from(w).powi(2)).sum();
            svd.singular_values.fill((0.9 * energy / 128.0).sqrt());
            svd.singular_values[0] = (0.8 * energy).sqrt();
            Ok(svd)
        }
    }
    let weight = gaussian(64, 64, 1);
    let spec = coding("trellis:2:window=10", 1, false);
    let verdict = auto_rank(&weight, &spec, None, 1, &Boastful).unwrap();
    let measured = verdict.measured.unwrap();
    assert!(verdict.promised < 0.3 && measured > verdict.break_even && verdict.rank == 0, "{verdict:?}");
}
