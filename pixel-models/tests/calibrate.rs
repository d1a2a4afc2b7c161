//! Calibration of whole models: every linear layer is seen, and compression with what was seen is better.
#![cfg(feature = "flex")]

use approx::abs_diff_eq;
use burn::tensor::Device;
use pixel_core::archive::calibration::{Calibration, Description, Weighting};
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::compressor::{RunOptions, compress_checkpoint, decompress_archive};
use pixel_core::plan::{Plan, Recipe};
use pixel_core::{Matrix, Moments, Shape};
use pixel_models::calibrate::{CalibrationTokens, calibrate_causal, calibrate_encoder};
use pixel_models::{LoadOptions, ModelError, load};
use pixel_nn::calibration::CalibrationOptions;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// How tokens are weighted in this build.
const WEIGHTINGS: &[Weighting] =
    if cfg!(feature = "autodiff") { &[Weighting::Uniform, Weighting::Gradient] } else { &[Weighting::Uniform] };

/// Layers at 2 bits, in models of a few thousand weights.
const RECIPE: &str = "min_weights = 1\n[default]\ncodec = 'trellis'\nbits = 2\noptions = { window = 10 }\n";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(name)
}

/// A directory for one file of calibration.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("calibration.safetensors")
    }

    fn open(&self) -> Calibration {
        Calibration::open(self.file()).unwrap()
    }
}

/// Asserts that the moments of `weight` are `expected`, to 10⁻⁵ of the largest.
fn assert_moments(calibration: &Calibration, weight: &str, expected: &Moments) {
    let found = calibration.moments(weight).unwrap().unwrap_or_else(|| panic!("{weight} was not seen"));
    let n = expected.d_input();
    assert_eq!(found.d_input(), n, "{weight}");
    let places = || (0..n * n).map(|i| (i / n, i % n));
    let largest = places().map(|(i, j)| expected.at(i, j).abs()).fold(0.0, f64::max);
    assert!(largest > 0.0, "{weight}");
    for (i, j) in places() {
        let (found, expected) = (found.at(i, j), expected.at(i, j));
        assert!(
            abs_diff_eq!(found, expected, epsilon = 1e-5 * largest),
            "{weight} at ({i}, {j}): {found}, expected {expected}"
        );
    }
}

/// The weights of each group, by the group's name.
fn members(description: &Description) -> BTreeMap<&str, Vec<&str>> {
    description
        .groups
        .iter()
        .map(|(name, group)| (name.as_str(), group.weights.iter().map(String::as_str).collect()))
        .collect()
}

/// Texts of 4 to 11 tokens, 600 in all, of the models' 48.
fn tokens() -> CalibrationTokens {
    let text = |i: usize| (0..4 + i % 8).map(|j| ((i * i * 31 + j * j * 7 + i * j) % 48) as u32).collect();
    let texts: Vec<Vec<u32>> = (0..80).map(text).collect();
    CalibrationTokens { batch_tokens: 64, ..CalibrationTokens::texts(&texts, usize::MAX) }
}

/// Calibrates the model `name` on the tokens.
fn collect(name: &str, tokens: &CalibrationTokens, options: &CalibrationOptions, output: &Path) -> Description {
    let model = load(folder(name), &LoadOptions::default(), &Device::flex()).unwrap();
    let description = match name {
        "bert" => calibrate_encoder(&model.into_encoder().unwrap(), tokens, options, output, &mut |_| {}),
        _ => calibrate_causal(&model.into_causal().unwrap(), tokens, options, output, &mut |_| {}),
    };
    description.unwrap()
}

fn options(weighting: Weighting) -> CalibrationOptions {
    CalibrationOptions { weighting, ..CalibrationOptions::new() }
}

/// The matrices of linear layers that the model runs.
fn linear_tensors(checkpoint: &Checkpoint) -> BTreeSet<String> {
    let matrices = checkpoint.tensors().iter().filter(|(_, info)| info.shape.len() == 2);
    let linear = |name: &&String| !name.contains("embed") && !name.contains("pooler");
    matrices.map(|(name, _)| name).filter(linear).cloned().collect()
}

#[test]
fn the_linear_layers_of_a_model_are_seen_and_nothing_else() {
    for (name, groups, layers) in [("llama", 8, 14), ("mistral_window", 9, 15), ("bert", 8, 12)] {
        let checkpoint = Checkpoint::open(folder(name)).unwrap();
        let expected = linear_tensors(&checkpoint);
        assert_eq!(expected.len(), layers, "{name}: {expected:?}");
        for &weighting in WEIGHTINGS {
            // Gradients weigh the inputs of each layer in its own way.
            let groups = if weighting == Weighting::Gradient { layers } else { groups };
            let (place, tokens) = (Place::new(), tokens());
            let description = collect(name, &tokens, &options(weighting), &place.file());
            let found = members(&description).into_values().flatten().map(str::to_owned);
            assert_eq!(found.collect::<BTreeSet<_>>(), expected, "{name}");
            assert_eq!(description.groups.len(), groups, "{name}");
            let all = |count: u64| count as usize == tokens.num_tokens();
            assert!(description.groups.values().all(|group| all(group.tokens)), "{name}");
            place.open().check(&checkpoint).unwrap();
        }
    }
}

#[test]
fn a_token_that_the_model_lacks_is_an_error() {
    let open = |name: &str| load(folder(name), &LoadOptions::default(), &Device::flex()).unwrap();
    let tokens = CalibrationTokens::texts(&[vec![1, 2], vec![3, 48]], usize::MAX);
    for &weighting in WEIGHTINGS {
        let (place, options) = (Place::new(), options(weighting));
        let causal = open("llama").into_causal().unwrap();
        let errors = [
            calibrate_causal(&causal, &tokens, &options, place.file(), &mut |_| {}).unwrap_err(),
            calibrate_encoder(&open("bert").into_encoder().unwrap(), &tokens, &options, place.file(), &mut |_| {})
                .unwrap_err(),
        ];
        for error in errors {
            assert!(matches!(error, ModelError::UnknownToken { token: 48, text: None, rows: 48 }), "{error}");
        }
        assert!(!place.file().exists());
    }
}

#[test]
fn batches_change_nothing() {
    // What is drawn under gradient weighting does depend on them; the tests of `pixel calibrate` fix the seed,
    // which is the process's.
    let of = |name: &str, batch_tokens| {
        let (place, tokens) = (Place::new(), CalibrationTokens { batch_tokens, ..tokens() });
        collect(name, &tokens, &options(Weighting::Uniform), &place.file());
        place.open()
    };
    for name in ["llama", "bert"] {
        let (whole, parts) = (of(name, 1000), of(name, 1));
        for weight in linear_tensors(&Checkpoint::open(folder(name)).unwrap()) {
            assert_moments(&parts, &weight, &whole.moments(&weight).unwrap().unwrap());
        }
    }
}

/// Compresses the model `name` to `output`, and returns the loss of each layer's outputs.
fn losses(
    name: &str,
    calibration: &Arc<Calibration>,
    feedback: bool,
    output: &Path,
) -> BTreeMap<String, (f64, Option<f64>)> {
    let checkpoint = Checkpoint::open(folder(name)).unwrap();
    let mut plan = Plan::new(&checkpoint, &Recipe::from_toml(RECIPE).unwrap().compile().unwrap()).unwrap();
    if feedback {
        plan = plan.with_calibration(&checkpoint, Arc::clone(calibration)).unwrap();
    }
    compress_checkpoint(&checkpoint, &plan, output, RunOptions::default(), &()).unwrap();
    let (archive, dense) = (Archive::open(output).unwrap(), output.with_extension("dense"));
    decompress_archive(&archive, &dense, None, RunOptions::default(), &()).unwrap();
    let dense = Checkpoint::open(&dense).unwrap();
    let matrix = |checkpoint: &Checkpoint, name: &str| {
        let shape = &checkpoint.info(name).unwrap().shape;
        Matrix::new(Shape::new(shape[0], shape[1]).unwrap(), checkpoint.to_f32(name).unwrap()).unwrap()
    };
    let loss = |weight: String| {
        let moments = calibration.moments(&weight).unwrap().unwrap();
        let (before, after) = (matrix(&checkpoint, &weight), matrix(&dense, &weight));
        let loss = moments.output_error(before.as_ref(), after.as_ref()).relative_mse();
        let stated = archive.entries()[&weight].manifest().output_loss;
        (weight, (loss, stated))
    };
    linear_tensors(&checkpoint).into_iter().map(loss).collect()
}

#[test]
fn feedback_keeps_the_outputs_better() {
    for name in ["llama", "bert"] {
        for &weighting in WEIGHTINGS {
            let place = Place::new();
            collect(name, &tokens(), &options(weighting), &place.file());
            let calibration = Arc::new(place.open());
            let path = |file: &str| place.0.path().join(file);
            let without = losses(name, &calibration, false, &path("without"));
            let with = losses(name, &calibration, true, &path("with"));
            let mut logarithms = Vec::new();
            for (weight, (loss, stated)) in &with {
                let stated = stated.expect("calibrated layers state their loss");
                assert!(abs_diff_eq!(stated / loss, 1.0, epsilon = 1e-3), "{name}, {weight}: {stated}, found {loss}");
                let (before, unstated) = without[weight];
                assert_eq!(unstated, None, "{name}, {weight}");
                logarithms.push((loss / before).ln());
            }
            let worst = logarithms.iter().copied().fold(f64::MIN, f64::max).exp();
            let mean = (logarithms.iter().sum::<f64>() / logarithms.len() as f64).exp();
            assert!(mean < 0.75 && worst < 1.0, "{name}, {weighting:?}: {mean}, at worst {worst}");
        }
    }
}

#[test]
fn chunks_are_spread_over_the_text() {
    let text: Vec<u32> = (0..47).collect();
    let chunks = |tokens, bos| CalibrationTokens::chunks(&text, 5, tokens, bos).unwrap().texts;
    assert_eq!(chunks(11, None), [[0, 1, 2, 3, 4], [15, 16, 17, 18, 19], [30, 31, 32, 33, 34]]);
    assert_eq!(chunks(10, Some(99)), [[99, 1, 2, 3, 4], [99, 21, 22, 23, 24]]);
    assert_eq!(chunks(1000, None).len(), 9);
    let error = CalibrationTokens::chunks(&text, 48, 100, None).unwrap_err();
    assert_eq!(error.to_string(), "a chunk needs 48 tokens, the text has 47");
}
