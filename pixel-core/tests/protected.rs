//! Protected columns: they come back as F16 of the source, the best ones are picked, and files that lie are refused.

mod common;

use approx::assert_relative_eq;
use common::{chain, config, encode, forged, spec, streams};
use half::f16;
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::codec::{FAMILIES, Stream};
use pixel_core::compressor::{RunOptions, compress_checkpoint, decompress_archive};
use pixel_core::encode::largest_columns;
use pixel_core::math::metrics::{ErrorSums, relative_error};
use pixel_core::plan::{Plan, Recipe};
use pixel_core::synthesis::{KernelForm, reference};
use pixel_core::{
    CodecSpec, CodingSpec, Encoder, FeedbackOptions, Matrix, Moments, PackedHeader, PackedWeight, PreparedInputs,
    Shape, compress_weight,
};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;

/// The codec `text` with `protect` protected columns.
fn protecting(text: &str, protect: usize) -> CodingSpec {
    CodingSpec::new(text.parse().unwrap()).with_protect(protect)
}

fn gaussian(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Matrix {
    Matrix::new(Shape::new(rows, cols).unwrap(), gaussian(rows * cols, seed)).unwrap()
}

/// Moments of inputs of very different powers that share a common part.
fn moments(n: usize, seed: u64) -> Moments {
    let samples = 3 * n;
    let (noise, common, powers) = (gaussian(samples * n, seed), gaussian(samples, seed + 1), gaussian(n, seed + 2));
    let input = |(i, x): (usize, &f32)| (x + common[i / n]) * powers[i % n].exp();
    Moments::of_inputs(n, &noise.iter().enumerate().map(input).collect::<Vec<f32>>())
}

proptest! {
    #![proptest_config(config(96))]

    #[test]
    fn protected_columns_come_back_as_f16_of_the_source(
        rows in 1usize..45, cols in 1usize..45, family in 0usize..4, rate in 0usize..7, share in 0.0..1.0f64,
        rotation in prop::option::of(any::<u64>()), calibrated in any::<bool>(), magnitude in -120..120i32,
        seed in any::<u64>()
    ) {
        let protect = (share * cols as f64) as usize;
        let mut weight = matrix(rows, cols, seed);
        weight.as_mut_slice().iter_mut().for_each(|w| *w *= 2f32.powi(magnitude));
        let spec = CodingSpec::new(spec(family, rate)).with_rotation(rotation).with_protect(protect);
        let inputs = calibrated.then(|| moments(cols, seed ^ 1));
        let (packed, outcome) = encode(&weight, &spec, inputs.clone());
        let dense = packed.synthesize();

        let columns = largest_columns(weight.as_ref(), inputs.as_ref(), protect);
        prop_assert_eq!(packed.protected().columns(), &columns[..]);
        let unit = f64::from(packed.header().exponent.unit());
        for (row, found) in weight.as_slice().chunks(cols).zip(dense.as_slice().chunks(cols)) {
            for &c in &columns {
                let stored = f16::from_f64(f64::from(row[c as usize]) / unit).to_f64() * unit;
                prop_assert_eq!(found[c as usize], stored as f32, "column {}", c);
            }
        }

        // Fast is the definition.
        let error = relative_error(reference::synthesize(&packed).as_slice(), dense.as_slice());
        prop_assert!(error <= 4.0 * f64::from(f32::EPSILON) * (cols as f64).sqrt(), "{}: {error:e}", spec.codec);

        // Every stored byte counts.
        let stored: usize = packed.streams().map(|(_, bytes)| bytes.to_le_bytes().len()).sum();
        prop_assert_eq!(packed.num_bytes(), stored);

        // What is reported is what was lost, F16 included.
        if protect > 0 {
            let measured = ErrorSums::between(weight.as_slice(), dense.as_slice());
            prop_assert_eq!(outcome.weight, measured);
            let output = inputs.map(|inputs| inputs.output_error(weight.as_ref(), dense.as_ref()));
            prop_assert_eq!(outcome.output.map(|output| output.sums), output);
        }

        // Back from its streams, and from the form of kernels.
        let again = PackedWeight::new(packed.header().clone(), streams(&packed)).unwrap();
        prop_assert_eq!(again.synthesize(), packed.synthesize());
        if let Ok(form) = KernelForm::new(&packed) {
            prop_assert!(form.to_packed(packed.header()).unwrap().streams().eq(packed.streams()));
        }
    }

    #[test]
    fn the_columns_picked_are_those_with_the_most_energy(
        rows in 1usize..9, cols in 2usize..14, calibrated in any::<bool>(), seed in any::<u64>()
    ) {
        let weight = matrix(rows, cols, seed);
        let inputs = calibrated.then(|| moments(cols, seed ^ 1));
        let energy = |c: usize| -> f64 {
            let norm: f64 = (0..rows).map(|r| f64::from(weight.as_slice()[r * cols + c]).powi(2)).sum();
            norm * inputs.as_ref().map_or(1.0, |inputs| inputs.at(c, c))
        };
        for count in 0..cols {
            // Of all sets of that many columns, by brute force, none has more.
            let sets = (0u32..1 << cols).filter(|set| set.count_ones() as usize == count);
            let sum = |set: u32| (0..cols).filter(|c| set >> c & 1 == 1).map(energy).sum::<f64>();
            let best = sets.map(sum).fold(0.0, f64::max);
            let found = largest_columns(weight.as_ref(), inputs.as_ref(), count);
            prop_assert_eq!(found.len(), count);
            let found = sum(found.iter().map(|c| 1 << c).sum());
            assert_relative_eq!(found, best, epsilon = 0.0, max_relative = 1e-12);
        }
    }

    /// Columns that are not taken from the codes have no say in the scales.
    #[test]
    fn row_scales_are_those_that_fit_the_other_columns(
        cols in 4usize..40, rotate in any::<bool>(), seed in any::<u64>()
    ) {
        let weight = matrix(16, cols, seed);
        let spec = protecting("trellis:2:window=8", cols / 2).with_rotation(rotate.then_some(seed));
        let (packed, _) = encode(&weight, &spec, None);
        let errors = |packed: &PackedWeight| -> Vec<f64> {
            let dense = packed.synthesize();
            let rows = weight.as_slice().chunks(cols).zip(dense.as_slice().chunks(cols));
            rows.map(|(w, d)| ErrorSums::between(w, d).error).collect()
        };
        let best = errors(&packed);
        for factor in [0.98, 1.02] {
            let mut moved = streams(&packed);
            let Stream::F16(scales) = &mut moved[1] else { panic!("scales come second") };
            scales.iter_mut().for_each(|scale| *scale = f16::from_f32(scale.to_f32() * factor));
            let moved = errors(&PackedWeight::new(packed.header().clone(), moved).unwrap());
            for (row, (best, moved)) in best.iter().zip(&moved).enumerate() {
                prop_assert!(best <= moved, "row {row}: {best} with the scale fitted, {moved} times {factor}");
            }
        }
    }
}

#[test]
fn the_short_form_and_prepared_inputs_give_the_same_bytes() {
    let (weight, inputs) = (matrix(40, 48, 3), moments(48, 4));
    for family in FAMILIES {
        let codec = CodecSpec::new(family.name(), family.rates()[1]);
        for rotation in [None, Some(7)] {
            let spec = CodingSpec::new(codec.clone()).with_rotation(rotation);
            let (plain, error) = compress_weight(weight.as_ref(), &codec, rotation).unwrap();
            let (packed, outcome) = encode(&weight, &spec, None);
            assert!(packed.streams().eq(plain.streams()) && outcome.weight == error, "{codec}");
            for protect in [0, 3] {
                let spec = spec.clone().with_protect(protect);
                let columns = largest_columns(weight.as_ref(), Some(&inputs), protect);
                let prepared = PreparedInputs::new(inputs.clone(), &spec, columns);
                let (plain, error) = Encoder::new(&spec).with_inputs(&prepared).encode(weight.clone()).unwrap();
                let (packed, outcome) = encode(&weight, &spec, inputs.clone());
                assert!(packed.streams().eq(plain.streams()) && outcome == error, "{codec} {protect}");
            }
        }
    }
}

/// A weight of unit deviation, but for four columns that hold 60 % of its energy.
fn with_outliers(rows: usize, cols: usize) -> Matrix {
    let mut weight = matrix(rows, cols, 5);
    let factor = (1.5 * (cols - 4) as f64 / 4.0).sqrt() as f32;
    for row in weight.as_mut_slice().chunks_mut(cols) {
        [3, 40, 41, 90].into_iter().for_each(|c| row[c] *= factor);
    }
    weight
}

#[test]
fn outliers_cost_several_times_as_much_if_they_are_not_protected() {
    let weight = with_outliers(64, 128);
    for (text, rotation, least) in [
        ("uniform:3", None, 5.0),
        ("trellis:2:window=10", None, 5.0),
        ("additive:2", None, 5.0),
        // Rotated, they add their energy to that of the others and no more: 1/.4.
        ("trellis:2:window=10", Some(1), 2.3),
        ("uniform:3", Some(1), 2.0),
    ] {
        let loss = |protect| {
            let (packed, outcome) = encode(&weight, &protecting(text, protect).with_rotation(rotation), None);
            assert_eq!(packed.protected().columns(), &[3, 40, 41, 90][..protect]);
            outcome.weight.relative_mse()
        };
        let ratio = loss(0) / loss(4);
        assert!(ratio > least, "{text} {rotation:?}: {ratio}");
    }
}

#[test]
fn errors_under_a_protected_column_cost_nothing_in_the_feedback() {
    // One input drowns all others, and goes with all of them.
    let n = 64;
    let (noise, common) = (gaussian(512 * n, 1), gaussian(512, 2));
    let inputs = |power: f32| {
        let input = |(i, x): (usize, &f32)| (x + common[i / n]) * if i % n == 9 { power } else { 1.0 };
        Moments::of_inputs(n, &noise.iter().enumerate().map(input).collect::<Vec<f32>>())
    };
    for (text, rotation) in [("trellis:2:window=8", None), ("trellis:2:window=8", Some(3)), ("uniform:2", Some(3))] {
        let run = |power, protect| {
            let known = FeedbackOptions { damping: Some(0.01), ..Default::default() };
            let spec = protecting(text, protect).with_rotation(rotation).with_feedback(Some(known));
            encode(&matrix(48, n, 6), &spec, inputs(power))
        };
        let loss = |outcome: pixel_core::Outcome| outcome.output.unwrap().sums.error;
        let ((packed, protected), (_, unprotected)) = (run(50.0, 1), run(50.0, 0));
        assert_eq!(packed.protected().columns(), &[9]);
        let ratio = loss(unprotected) / loss(protected);
        assert!(ratio > 1.5, "{text} {rotation:?}: {ratio}");
        // However much it counts, and with whichever sign it goes with the others, no code changes.
        let (again, _) = run(-700.0, 1);
        assert!(again.streams().eq(packed.streams()), "{text} {rotation:?}");
    }
}

#[test]
fn streams_that_no_decoder_could_use_are_refused() {
    let (packed, _) = encode(&matrix(5, 12, 1), &protecting("additive:2", 3).with_rotation(Some(1)), None);
    let error = |header: PackedHeader, columns: &[u32], value: f16| {
        let mut streams = streams(&packed);
        let len = streams.len();
        streams[len - 2] = Stream::U32(columns.to_vec());
        let Stream::F16(values) = &mut streams[len - 1] else { panic!("values come last") };
        values[7] = value;
        PackedWeight::new(header, streams).map(|_| ()).map_err(|e| e.to_string())
    };
    let header = || packed.header().clone();
    assert_eq!(error(header(), &[0, 5, 11], f16::ONE), Ok(()));
    for (columns, value, expected) in [
        (&[0, 5, 12][..], f16::ONE, "stream \"protected\" holds column 12 of 12 at index 2"),
        (&[0, u32::MAX, 11], f16::ONE, "stream \"protected\" holds column 4294967295 of 12 at index 1"),
        (&[0, 5, 5], f16::ONE, "stream \"protected\" holds 5 after 5 at index 2, and has to ascend"),
        (&[6, 5, 7], f16::ONE, "stream \"protected\" holds 5 after 6 at index 1, and has to ascend"),
        (&[0, 5], f16::ONE, "stream \"protected\" holds U32 [2], expected U32 [3]"),
        (&[0, 5, 11], f16::NAN, "stream \"protected_values\" holds NaN at index 7"),
        (&[0, 5, 11], f16::NEG_INFINITY, "stream \"protected_values\" holds -inf at index 7"),
    ] {
        assert_eq!(error(header(), columns, value).unwrap_err(), expected);
    }
    for protected in [12, 13, usize::MAX] {
        let found = error(PackedHeader { protected, ..header() }, &[0, 5, 11], f16::ONE).unwrap_err();
        let range = "outside 0 to 11: the weight has 12 columns, and codes need one";
        assert_eq!(found, format!("protect = {protected} is {range}"));
    }
    let found = error(PackedHeader { protected: 0, ..header() }, &[0, 5, 11], f16::ONE).unwrap_err();
    assert_eq!(found, "4 streams are given, the weight has 2");
}

#[test]
fn a_form_for_kernels_with_other_columns_is_refused() {
    let (packed, _) = encode(&matrix(5, 12, 1), &protecting("additive:2", 2), None);
    let form = KernelForm::new(&packed).unwrap();
    let error = |form: KernelForm| form.to_packed(packed.header()).unwrap_err().to_string();
    let protected = vec![1];
    assert_eq!(error(KernelForm { protected, ..form.clone() }), "protected has 1 values, the layout asks for 2");
    let protected_values = vec![1.0; 11];
    let found = error(KernelForm { protected_values, ..form.clone() });
    assert_eq!(found, "protected_values has 11 values, the layout asks for 10");
    let mut beyond = form;
    beyond.protected_values[3] = 1e6;
    assert!(error(beyond).starts_with("the protected weight at index 3 is"));
}

/// Two layers of 24×40 and a table, as a checkpoint; the archive of them with `recipe`.
fn archive(dir: &Path, recipe: &str) -> Result<Checkpoint, String> {
    let bytes: Vec<u8> = gaussian(24 * 40, 3).iter().flat_map(|w| w.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![24, 40], &bytes).unwrap();
    let source = dir.join("source.safetensors");
    safetensors::serialize_to_file([("a.weight", &view), ("b.weight", &view), ("wte.weight", &view)], None, &source)
        .unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let recipe = Recipe::from_toml(recipe).and_then(Recipe::compile).map_err(|e| e.to_string())?;
    let plan = Plan::new(&checkpoint, &recipe).map_err(|e| chain(&e))?;
    let output = dir.join("archive.safetensors");
    compress_checkpoint(&checkpoint, &plan, &output, RunOptions { threads: 1, overwrite: true }, &()).unwrap();
    assert_eq!(std::fs::metadata(&output).unwrap().len(), plan.stored_bytes(), "as planned");
    Ok(checkpoint)
}

const RECIPE: &str = "min_weights = 1\n[default]\ncodec = 'trellis'\nbits = 2\noptions = { window = 8 }\nprotect = 3\n";

#[test]
fn recipes_protect_columns_of_layers_and_files_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let source = archive(dir.path(), &format!("{RECIPE}[[rule]]\nmatch = '^b[.]'\nprotect = 7\n")).unwrap();
    let archive = Archive::open(dir.path().join("archive.safetensors")).unwrap();
    let found = |name: &str| {
        let (entry, packed) = (archive.entries()[name].header(), archive.packed(name).unwrap());
        assert_eq!(packed.protected().len(), entry.protected);
        assert_eq!(archive.entries()[name].num_bytes(), packed.num_bytes() as u64);
        entry.protected
    };
    assert_eq!((found("a.weight"), found("b.weight"), found("wte.weight")), (3, 7, 0));
    let dense = dir.path().join("dense.safetensors");
    decompress_archive(&archive, &dense, None, RunOptions::default(), &()).unwrap();
    let dense = Checkpoint::open(&dense).unwrap().to_f32("b.weight").unwrap();
    assert_eq!(dense, archive.packed("b.weight").unwrap().synthesize().as_slice());
    let error = ErrorSums::between(&source.to_f32("b.weight").unwrap(), &dense).relative_mse();
    assert_eq!(error, archive.entries()["b.weight"].manifest().relative_mse);
}

#[test]
fn as_many_protected_columns_as_there_are_is_an_error_for_a_weight_and_left_out_of_a_plan() {
    let dir = tempfile::tempdir().unwrap();
    let all = archive(dir.path(), &format!("{RECIPE}[[rule]]\nmatch = '^b[.]'\nprotect = 40\n")).unwrap();
    let archive = Archive::open(dir.path().join("archive.safetensors")).unwrap();
    assert_eq!((archive.entries()["b.weight"].header().protected, all.tensors().len()), (0, 3));
    let error = Encoder::new(&protecting("additive:2", 12)).encode(matrix(5, 12, 1)).unwrap_err().to_string();
    assert!(error.contains("protect = 12 is outside 0 to 11"), "{error}");
}

#[test]
fn manifests_that_miscount_protected_columns_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    archive(dir.path(), RECIPE).unwrap();
    let bytes = std::fs::read(dir.path().join("archive.safetensors")).unwrap();
    let path = dir.path().join("forged.safetensors");
    let open = |change: &dyn Fn(&mut serde_json::Value)| {
        std::fs::write(&path, forged(&bytes, change)).unwrap();
        Archive::open(&path).map(|_| ()).map_err(|error| chain(&error))
    };
    assert_eq!(open(&|_| {}), Ok(()));
    // What a reader of version 1.0 sees, which does not know the field: tensors that nothing accounts for.
    let unknown = |m: &mut serde_json::Value| {
        m["tensors"]["a.weight"].as_object_mut().unwrap().remove("protected");
    };
    let error = open(&unknown).unwrap_err();
    assert!(error.contains("stored tensor \"a.weight.protected\" is not listed"), "{error}");
    let error = open(&|m| m["tensors"]["a.weight"]["protected"] = 4.into()).unwrap_err();
    assert!(error.contains("stream \"protected\" holds U32 [3], expected U32 [4]"), "{error}");
    let error = open(&|m| m["tensors"]["wte.weight"]["protected"] = 1.into()).unwrap_err();
    assert!(error.contains("\"wte.weight.protected\" is listed but not stored"), "{error}");
    for count in [40u64, 1 << 60] {
        let error = open(&|m| m["tensors"]["a.weight"]["protected"] = count.into()).unwrap_err();
        assert!(error.contains(&format!("protect = {count} is outside 0 to 39")), "{error}");
    }
    assert!(open(&|m| m["tensors"]["a.weight"]["protected"] = (-1).into()).is_err());
}
