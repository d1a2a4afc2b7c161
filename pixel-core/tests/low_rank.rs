//! Low-rank parts in addition to the codes: they come back as they were rounded, errors are those of the whole, and
//! files that lie are refused.

mod common;

use approx::{assert_relative_eq, relative_eq};
use common::{FixedFactors, chain, config, encode, forged, spec, streams};
use half::f16;
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::codec::{FAMILIES, Stream};
use pixel_core::compressor::{RunOptions, compress_checkpoint, decompress_archive, sample_errors};
use pixel_core::encode::FACTOR_GROUP;
use pixel_core::math::metrics::ErrorSums;
use pixel_core::plan::{Plan, Recipe};
use pixel_core::synthesis::{KernelForm, reference};
use pixel_core::{
    CodecSpec, CodingSpec, Encoder, FactorStorage, LowRank, LowRankSpec, Matrix, Moments, Outcome, PackedWeight,
    Rotation, Shape, WeightError,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::Arc;

const STORAGES: [FactorStorage; 2] = [FactorStorage::Int8, FactorStorage::F16];

fn matrix(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..rows * cols).map(|_| rng.sample::<f32, _>(StandardNormal)).collect();
    Matrix::new(Shape::new(rows, cols).unwrap(), values).unwrap()
}

fn low_rank(rows: usize, cols: usize, rank: usize, seed: u64) -> LowRank {
    LowRank { up: matrix(rows, rank, seed ^ 1), down: matrix(rank, cols, seed ^ 2) }
}

/// `weight` coded as `spec` says, with `part` in addition to the codes, rounded to `storage`.
fn encode_with(
    weight: Matrix,
    spec: &CodingSpec,
    (part, storage): (&LowRank, FactorStorage),
    moments: Option<Moments>,
) -> Result<(PackedWeight, Outcome), WeightError> {
    let spec = spec.clone().with_low_rank(Some(LowRankSpec { rank: part.rank(), storage }));
    Encoder::new(&spec).with_moments(moments).with_low_rank(part).encode(weight)
}

/// The codec `text` and nothing else.
fn plain(text: &str) -> CodingSpec {
    CodingSpec::new(text.parse().unwrap())
}

fn moments(n: usize, seed: u64) -> Moments {
    let mut inputs = matrix(3 * n, n, seed);
    inputs.as_mut_slice().iter_mut().enumerate().for_each(|(i, x)| *x *= 1.0 + (i % n % 5) as f32);
    Moments::of_inputs(n, inputs.as_slice())
}

/// `part` in the basis of the inputs.
fn unrotated(part: &LowRank, rotation: Option<u64>) -> Matrix {
    let mut product = part.product();
    let n = product.shape().d_input();
    if let Some(rotation) = rotation.map(|seed| Rotation::new(n, seed)) {
        let mut scratch = rotation.scratch();
        product.as_mut_slice().chunks_exact_mut(n).for_each(|row| rotation.inverse(row, &mut scratch));
    }
    product
}

proptest! {
    #![proptest_config(config(96))]

    /// A weight is its part plus noise: whatever its size, the part comes back in it, the file's bytes make the same
    /// weight again, and the errors reported are those that a dense comparison finds.
    #[test]
    fn a_part_is_stored_in_addition_to_the_codes(
        rows in 1usize..45, cols in 1usize..200, family in 0usize..5, rate in 0usize..7, rank in 1usize..6,
        storage in 0usize..2, protect in 0usize..4, rotation in prop::option::of(any::<u64>()),
        calibrated in any::<bool>(), magnitude in -110..110i32, seed in any::<u64>()
    ) {
        let (rank, protect) = (rank.min(rows).min(cols), protect.saturating_sub(1).min(cols - 1));
        let mut part = low_rank(rows, cols, rank, seed);
        part.up.as_mut_slice().iter_mut().for_each(|u| *u *= 2f32.powi(magnitude));
        let mut weight = unrotated(&part, rotation);
        let noise = matrix(rows, cols, seed);
        let noise = noise.as_slice().iter().map(|v| 0.3 * v * 2f32.powi(magnitude));
        weight.as_mut_slice().iter_mut().zip(noise).for_each(|(w, v)| *w += v);
        let storage = STORAGES[storage];
        let spec = CodingSpec::new(spec(family, rate)).with_rotation(rotation).with_protect(protect);
        let inputs = calibrated.then(|| moments(cols, seed));
        let (packed, outcome) = encode_with(weight.clone(), &spec, (&part, storage), inputs.clone()).unwrap();

        // Each factor as close as its storage allows.
        let found = packed.low_rank_part().unwrap();
        let error = ErrorSums::between(part.product().as_slice(), found.product().as_slice()).relative_mse();
        prop_assert!(error < if storage == FactorStorage::Int8 { 2e-4 } else { 1e-6 }, "{error:e}");
        let low_rank = LowRankSpec { rank, storage };
        prop_assert_eq!(packed.header().low_rank, Some(low_rank));

        let dense = packed.synthesize();
        let definition = reference::synthesize(&packed);
        let error = ErrorSums::between(definition.as_slice(), dense.as_slice()).relative_mse();
        prop_assert!(error < 1e-10, "{error:e}");
        let measured = ErrorSums::between(weight.as_slice(), dense.as_slice());
        let close = |found: f64, expected: f64| relative_eq!(found, expected, epsilon = 1e-9, max_relative = 2e-3);
        prop_assert!(close(outcome.weight.relative_mse(), measured.relative_mse()), "{outcome:?} {measured:?}");
        if let Some(inputs) = inputs {
            let (found, measured) =
                (outcome.output.unwrap().sums, inputs.output_error(weight.as_ref(), dense.as_ref()));
            prop_assert!(close(found.relative_mse(), measured.relative_mse()), "{found:?} {measured:?}");
        }

        let again = PackedWeight::new(packed.header().clone(), streams(&packed)).unwrap();
        prop_assert_eq!(again.synthesize(), dense);
        let without = encode(&weight, &spec, None).0;
        prop_assert_eq!(packed.num_bytes(), without.num_bytes() + low_rank.num_bytes(weight.shape()));
        if let Ok(form) = KernelForm::new(&packed) {
            prop_assert!(form.to_packed(packed.header()).unwrap().streams().eq(packed.streams()));
        }
    }
}

/// A part of rank `r` in 8 bits takes `r·(m + n)` bytes, and two for each group of a vector.
#[test]
fn sizes_are_those_of_the_formula() {
    let shape = Shape::new(300, 128).unwrap();
    assert_eq!(FACTOR_GROUP, 128);
    let bytes = |storage| LowRankSpec { rank: 3, storage }.num_bytes(shape);
    assert_eq!(bytes(FactorStorage::Int8), 3 * (300 + 128) + 2 * 3 * (3 + 1));
    assert_eq!(bytes(FactorStorage::F16), 2 * 3 * (300 + 128));
}

/// What the part takes away, the codes need not meet: a spike of nine tenths of the energy costs a tenth of the error.
#[test]
fn the_error_is_that_of_what_the_part_leaves() {
    let part = low_rank(96, 128, 2, 3);
    let mut weight = unrotated(&part, Some(9));
    let noise = matrix(96, 128, 4);
    weight.as_mut_slice().iter_mut().zip(noise.as_slice()).for_each(|(w, v)| *w += (2.0f32 / 9.0).sqrt() * v);
    let spec = plain("trellis:2:window=10").with_rotation(Some(9));
    let with = encode_with(weight.clone(), &spec, (&part, FactorStorage::Int8), None).unwrap().1;
    let (with, without) = (with.weight.relative_mse(), encode(&weight, &spec, None).1.weight.relative_mse());
    assert!((0.09..0.12).contains(&(with / without)), "{with} {without}");
}

#[test]
fn a_part_that_is_all_of_the_weight_leaves_zeros() {
    let (part, spec) = (low_rank(20, 30, 1, 5), plain("additive:2"));
    for storage in STORAGES {
        let (packed, _) = encode_with(part.product(), &spec, (&part, storage), None).unwrap();
        // The codes compensate for most of the rounding.
        let error = ErrorSums::between(part.product().as_slice(), packed.synthesize().as_slice()).relative_mse();
        assert!(error < 1e-5, "{error:e}");
    }
    let zero = LowRank { up: Matrix::zeros(part.up.shape()), down: part.down.clone() };
    let (packed, _) = encode_with(part.product(), &spec, (&zero, FactorStorage::Int8), None).unwrap();
    let (without, _) = encode(&part.product(), &spec, None);
    assert_eq!(packed.synthesize(), without.synthesize());
}

#[test]
fn what_cannot_be_stored_is_refused() {
    let weight = || matrix(6, 10, 1);
    let error = |part: &LowRank| {
        encode_with(weight(), &plain("uniform:4"), (part, FactorStorage::F16), None).unwrap_err().to_string()
    };
    assert_eq!(error(&low_rank(6, 10, 7, 1)), "rank = 7 is outside 1 to 6: the weight is 6×10");
    let mut part = low_rank(6, 10, 2, 1);
    part.down.as_mut_slice()[13] = f32::NAN;
    assert_eq!(error(&part), "the low-rank part: stream \"low_rank_down\" holds NaN at index 13");
    part.down.as_mut_slice()[13] = 1.0;
    part.up.as_mut_slice()[3] = 1e9;
    assert!(error(&part).starts_with("the low-rank part: stream \"low_rank_up\" holds inf at index"));
}

/// Factors that F16 holds, whose product leaves far more than F16 scales can stand for.
#[test]
fn a_part_far_larger_than_the_weight_is_an_error_for_every_codec() {
    let (weight, rank) = (matrix(16, 64, 1), 8);
    let up = Matrix::new(Shape::new(16, rank).unwrap(), vec![6e4; 16 * rank]).unwrap();
    let signs = (0..64 * rank).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    let part = LowRank { up, down: Matrix::new(Shape::new(rank, 64).unwrap(), signs).unwrap() };
    for family in FAMILIES {
        let spec = CodingSpec::new(CodecSpec::new(family.name(), family.rates()[0]));
        for storage in STORAGES {
            let error = encode_with(weight.clone(), &spec, (&part, storage), None).unwrap_err();
            let text = error.to_string();
            // A codec with scales of its own is found out when these are packed.
            if family.name() == "uniform" {
                assert!(matches!(error, WeightError::Codes(_)), "{error:?}");
                assert_eq!(text, "the coded weight: stream \"scales\" holds inf at index 0");
            } else {
                assert!(matches!(error, WeightError::RowScale { row: 0, .. }), "{}: {error:?}", family.name());
                assert!(text.starts_with("the scale of row 0 is ") && text.contains("F16"), "{text}");
            }
        }
    }
}

#[test]
fn streams_that_no_decoder_could_use_are_refused() {
    for storage in STORAGES {
        let part = low_rank(5, 12, 3, 1);
        let (packed, _) = encode_with(matrix(5, 12, 1), &plain("additive:2"), (&part, storage), None).unwrap();
        let whole = streams(&packed);
        let error = |streams| PackedWeight::new(packed.header().clone(), streams).unwrap_err().to_string();
        for missing in 1..=4 {
            let cut = whole[..whole.len().saturating_sub(missing)].to_vec();
            assert!(error(cut).contains("is missing"), "{missing}");
        }
        let mut bad = whole.clone();
        let Some(Stream::F16(last)) = bad.last_mut() else { panic!("F16 comes last") };
        last[1] = f16::INFINITY;
        assert!(error(bad).contains("holds inf at index 1"));
        let mut bad = whole.clone();
        bad.push(Stream::I8(vec![1]));
        assert!(error(bad).contains("streams"));
        let mut header = packed.header().clone();
        for rank in [0, 6, usize::MAX] {
            header.low_rank = Some(LowRankSpec { rank, storage });
            let found = PackedWeight::new(header.clone(), whole.clone()).unwrap_err().to_string();
            assert_eq!(found, format!("rank = {rank} is outside 1 to 5: the weight is 5×12"));
        }
    }
}

/// Two layers of 24×140 and a table, as a checkpoint; the archive of them with `recipe`.
fn archive(dir: &Path, recipe: &str) -> Result<Checkpoint, String> {
    let bytes: Vec<u8> = matrix(24, 140, 3).as_slice().iter().flat_map(|w| w.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![24, 140], &bytes).unwrap();
    let source = dir.join("source.safetensors");
    safetensors::serialize_to_file([("a.weight", &view), ("b.weight", &view), ("wte.weight", &view)], None, &source)
        .unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let recipe = Recipe::from_toml(recipe).and_then(Recipe::compile).map_err(|e| e.to_string())?;
    let plan = Plan::new(&checkpoint, &recipe).map_err(|e| chain(&e))?.with_low_rank_fitter(Arc::new(FixedFactors));
    let output = dir.join("archive.safetensors");
    let options = RunOptions { threads: 1, overwrite: true };
    let report = compress_checkpoint(&checkpoint, &plan, &output, options, &()).map_err(|e| chain(&e))?;
    assert_eq!(std::fs::metadata(&output).unwrap().len(), plan.stored_bytes(), "as planned");
    for tensor in &report.tensors {
        let bytes = tensor.low_rank.map_or(0, |spec| spec.num_bytes(Shape::new(24, 140).unwrap()));
        assert_eq!(tensor.low_rank_bytes, bytes as u64);
    }
    // What a dry run finds on some rows is what the run finds on all of them, but for chance.
    for sample in sample_errors(&checkpoint, &plan, 3).unwrap() {
        let tensor = report.tensors.iter().find(|tensor| tensor.name == sample.name).unwrap();
        let ratio = sample.error.relative_mse() / tensor.relative_mse.unwrap();
        assert!((0.8..1.25).contains(&ratio), "{}: {ratio}", sample.name);
    }
    Ok(checkpoint)
}

const RECIPE: &str = "min_weights = 1\n[default]\ncodec = 'trellis'\nbits = 2\noptions = { window = 8 }\n\
                      rotate = false\nrank = 2\n\
    [[rule]]\nmatch = '^b[.]'\nrank = 3\nfactors = 'f16'\n";

#[test]
fn recipes_ask_for_parts_and_files_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let source = archive(dir.path(), RECIPE).unwrap();
    let archive = Archive::open(dir.path().join("archive.safetensors")).unwrap();
    let found = |name: &str| {
        let (entry, packed) = (archive.entries()[name].header(), archive.packed(name).unwrap());
        assert_eq!(packed.header().low_rank, entry.low_rank);
        assert_eq!(archive.entries()[name].num_bytes(), packed.num_bytes() as u64);
        entry.low_rank
    };
    let expected = |rank, storage| Some(LowRankSpec { rank, storage });
    assert_eq!(found("a.weight"), expected(2, FactorStorage::Int8));
    assert_eq!(found("b.weight"), expected(3, FactorStorage::F16));
    assert_eq!(found("wte.weight"), None);
    let dense = dir.path().join("dense.safetensors");
    decompress_archive(&archive, &dense, None, RunOptions::default(), &()).unwrap();
    let dense = Checkpoint::open(&dense).unwrap().to_f32("b.weight").unwrap();
    assert_eq!(dense, archive.packed("b.weight").unwrap().synthesize().as_slice());
    let error = ErrorSums::between(&source.to_f32("b.weight").unwrap(), &dense).relative_mse();
    let stated = archive.entries()["b.weight"].manifest().relative_mse;
    assert_relative_eq!(error, stated, epsilon = 0.0, max_relative = 1e-3);
}

#[test]
fn a_plan_without_a_fitter_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = archive(dir.path(), RECIPE).unwrap();
    let plan = Plan::new(&checkpoint, &Recipe::from_toml(RECIPE).unwrap().compile().unwrap()).unwrap();
    let output = dir.path().join("other.safetensors");
    let error = compress_checkpoint(&checkpoint, &plan, &output, RunOptions::default(), &()).unwrap_err();
    assert!(format!("{error:?}").contains("NoLowRankFitter"), "{error}");
    assert!(!output.exists());
}

#[test]
fn a_rank_beyond_the_shorter_side_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    archive(dir.path(), "min_weights = 1\n[default]\nrank = 25").unwrap();
    let archive = Archive::open(dir.path().join("archive.safetensors")).unwrap();
    assert!(archive.entries().values().all(|entry| entry.header().low_rank.is_none()));
}

#[test]
fn manifests_that_lie_about_parts_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    archive(dir.path(), RECIPE).unwrap();
    let bytes = std::fs::read(dir.path().join("archive.safetensors")).unwrap();
    let path = dir.path().join("forged.safetensors");
    let open = |change: &dyn Fn(&mut serde_json::Value)| {
        std::fs::write(&path, forged(&bytes, change)).unwrap();
        Archive::open(&path).map(|_| ()).map_err(|error| chain(&error))
    };
    assert_eq!(open(&|_| {}), Ok(()));
    // What an older reader sees, which does not know the field: tensors that nothing accounts for.
    let unknown = |m: &mut serde_json::Value| {
        m["tensors"]["a.weight"].as_object_mut().unwrap().remove("low_rank");
    };
    let error = open(&unknown).unwrap_err();
    assert!(error.contains("stored tensor \"a.weight.low_rank_down\" is not listed"), "{error}");
    let error = open(&|m| m["tensors"]["a.weight"]["low_rank"]["rank"] = 3.into()).unwrap_err();
    assert!(error.contains("stream \"low_rank_down\" holds I8 [2, 140], expected I8 [3, 140]"), "{error}");
    let error = open(&|m| m["tensors"]["a.weight"]["low_rank"]["storage"] = "f16".into()).unwrap_err();
    assert!(error.contains("holds I8 [2, 140], expected F16 [2, 140]"), "{error}");
    for rank in [0u64, 25, 1 << 60] {
        let error = open(&|m| m["tensors"]["a.weight"]["low_rank"]["rank"] = rank.into()).unwrap_err();
        assert!(error.contains(&format!("rank = {rank} is outside 1 to 24")), "{error}");
    }
    for bad in [serde_json::json!({"rank": 2, "storage": "int4"}), serde_json::json!({"rank": -1, "storage": "int8"})] {
        assert!(open(&|m| m["tensors"]["a.weight"]["low_rank"] = bad.clone()).is_err(), "{bad}");
    }
}
