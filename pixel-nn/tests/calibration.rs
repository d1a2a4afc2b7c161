//! Calibration: what is collected is what the layers read, weighted as the formula says, whatever the number of passes.
#![cfg(feature = "flex")]

mod draws;

use approx::abs_diff_eq;
use burn::module::{Module, ParamId};
use burn::nn::Linear;
use burn::tensor::activation::tanh;
use burn::tensor::{Device, Distribution, Tensor};
use draws::dense;
use pixel_core::archive::ArchiveError;
use pixel_core::archive::calibration::{Calibration, Description, Source, Weighting};
use pixel_core::{CodingSpec, Encoder, Moments};
use pixel_nn::calibration::{
    CalibrationError, CalibrationOptions, CalibrationProgress, InputMoments, InputSums, calibrate, calibrate_in_memory,
    weight_paths,
};
use pixel_nn::{PIXELLinear, Projection, ReplaceConfig, ReplacementReport, compress_model, replace_linear_layers};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Query and key read the input, the output layer what comes of both.
#[derive(Module, Debug)]
struct Block {
    query: Projection,
    key: PIXELLinear,
    output: Projection,
}

const D_INPUT: usize = 12;
const D_INNER: usize = 10;
const D_OUTPUT: usize = 7;

fn packed(linear: &Linear) -> PIXELLinear {
    PIXELLinear::from_linear(linear, &"uniform:4:group=32".parse().unwrap(), 3).unwrap().0
}

impl Block {
    fn new() -> Self {
        Self {
            query: dense(D_INPUT, D_INNER).into(),
            key: packed(&dense(D_INPUT, D_INNER)),
            output: packed(&dense(D_INNER, D_OUTPUT)).into(),
        }
    }

    /// What the output layer reads.
    fn inner<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        tanh(self.query.forward(x.clone()) * self.key.forward(x))
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.output.forward(self.inner(x))
    }
}

/// Three batches `[2, 5, D_INPUT]`: 30 tokens, with a mean and with unequal powers.
fn batches() -> Vec<Tensor<3>> {
    let device = Device::flex();
    let powers = Tensor::<1>::from_floats([1.0, 2.0, 0.1, 5.0, 1.0, 1.0, 0.3, 1.0, 3.0, 1.0, 1.0, 0.7], &device);
    let batch = || draws::random([2, 5, D_INPUT], Distribution::Normal(0.4, 1.0));
    (0..3).map(|_| batch() * powers.clone().unsqueeze()).collect()
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Values of all batches, one after the other.
fn all<const D: usize>(batches: &[Tensor<D>], of: impl Fn(Tensor<D>) -> Tensor<D>) -> Vec<f32> {
    batches.iter().flat_map(|batch| host(of(batch.clone()))).collect()
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

    fn is_empty(&self) -> bool {
        fs::read_dir(self.0.path()).unwrap().next().is_none()
    }

    fn open(&self) -> Calibration {
        Calibration::open(self.file()).unwrap()
    }
}

/// Calibrates without a word.
fn quietly<B>(
    weights: &BTreeMap<ParamId, String>,
    batches: &[B],
    forward: impl FnMut(&B) -> Option<Tensor<1>>,
    options: &CalibrationOptions,
    output: &Path,
) -> Result<Description, CalibrationError> {
    calibrate(weights, batches, forward, options, output, &mut |_| {})
}

/// Runs the layers and asks for nothing.
fn plain<B>(run: impl Fn(&B)) -> impl FnMut(&B) -> Option<Tensor<1>> {
    move |batch| {
        run(batch);
        None
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

#[test]
fn the_moments_are_those_of_what_the_layers_read() {
    let (block, batches, place) = (Block::new(), batches(), Place::new());
    let source = Source { name: "noise".into(), blake3: "0".repeat(64), tokens: 30 };
    let options = CalibrationOptions { sources: vec![source.clone()], ..CalibrationOptions::new() };
    let forward = plain(|batch: &Tensor<3>| drop(block.forward(batch.clone())));
    let description = quietly(&weight_paths(&block), &batches, forward, &options, &place.file()).unwrap();

    let calibration = place.open();
    assert_eq!(calibration.description(), &description);
    assert_eq!(description.sources, [source]);
    let inputs = all(&batches, |batch| batch);
    for weight in ["query.weight", "key.weight"] {
        assert_moments(&calibration, weight, &Moments::of_inputs(D_INPUT, &inputs));
    }
    let inner = all(&batches, |batch| block.inner(batch));
    assert_moments(&calibration, "output.weight", &Moments::of_inputs(D_INNER, &inner));

    let mean = calibration.mean("output.weight").unwrap().unwrap();
    for (i, found) in mean.into_iter().enumerate() {
        let expected = inner.iter().skip(i).step_by(D_INNER).sum::<f32>() / 30.0;
        assert!(abs_diff_eq!(found, expected, epsilon = 1e-5), "input {i}: {found}, expected {expected}");
    }
}

#[test]
fn layers_share_a_group_if_they_read_the_same() {
    let (block, batches, place) = (Block::new(), batches(), Place::new());
    let forward = plain(|batch: &Tensor<3>| drop(block.forward(batch.clone())));
    let weights = weight_paths(&block);
    let description = quietly(&weights, &batches, forward, &CalibrationOptions::new(), &place.file()).unwrap();
    let expected = [("key.weight", vec!["key.weight", "query.weight"]), ("output.weight", vec!["output.weight"])];
    assert_eq!(members(&description), expected.into());
    assert!(description.groups.values().all(|group| group.tokens == 30), "{description:?}");
}

#[test]
fn a_layer_that_sits_out_a_batch_does_not_share() {
    // As experts do, of which each reads some of the tokens.
    let experts = ["a", "b"].map(|name| (name, Projection::from(dense(D_INPUT, 4))));
    let named =
        |(name, expert): &(&str, Projection)| weight_paths(expert).into_keys().map(|id| (id, (*name).into())).next();
    let weights: BTreeMap<ParamId, String> = experts.iter().filter_map(named).collect();
    let (batches, place) = (batches().into_iter().enumerate().collect::<Vec<_>>(), Place::new());
    let forward = plain(|(index, batch): &(usize, Tensor<3>)| {
        let running = if *index == 0 { &experts[..1] } else { &experts[..] };
        running.iter().for_each(|(_, expert)| drop(expert.forward(batch.clone())));
    });
    quietly(&weights, &batches, forward, &CalibrationOptions::new(), &place.file()).unwrap();
    let calibration = place.open();
    for (name, first, tokens) in [("a", 0, 30), ("b", 1, 20)] {
        let inputs: Vec<f32> = batches[first..].iter().flat_map(|(_, batch)| host(batch.clone())).collect();
        assert_moments(&calibration, name, &Moments::of_inputs(D_INPUT, &inputs));
        assert_eq!(calibration.group(name).unwrap().tokens, tokens, "{name}");
    }
}

#[test]
fn a_layer_that_runs_twice_counts_twice() {
    let layer = Projection::from(dense(D_INPUT, D_INPUT));
    let (batches, place) = (batches(), Place::new());
    let forward = plain(|batch: &Tensor<3>| drop(layer.forward(layer.forward(batch.clone()))));
    let weights = weight_paths(&layer);
    quietly(&weights, &batches, forward, &CalibrationOptions::new(), &place.file()).unwrap();
    let mut inputs = all(&batches, |batch| batch);
    inputs.extend(all(&batches, |batch| layer.forward(batch)));
    let calibration = place.open();
    assert_moments(&calibration, "weight", &Moments::of_inputs(D_INPUT, &inputs));
    assert_eq!(calibration.group("weight").unwrap().tokens, 60);
}

#[test]
fn a_weight_that_nothing_read_is_not_in_the_file() {
    let (block, batches, place) = (Block::new(), batches(), Place::new());
    let forward = plain(|batch: &Tensor<3>| drop(block.key.forward(batch.clone())));
    let weights = weight_paths(&block);
    let description = quietly(&weights, &batches, forward, &CalibrationOptions::new(), &place.file()).unwrap();
    assert_eq!(members(&description), [("key.weight", vec!["key.weight"])].into());
}

#[test]
fn passes_change_nothing() {
    let (block, batches) = (Block::new(), batches());
    let collect = |memory_bytes| {
        let (place, mut seen) = (Place::new(), Vec::new());
        let forward = plain(|batch: &Tensor<3>| drop(block.forward(batch.clone())));
        let options = CalibrationOptions { memory_bytes, ..CalibrationOptions::new() };
        calibrate(&weight_paths(&block), &batches, forward, &options, place.file(), &mut |done| seen.push(done))
            .unwrap();
        (fs::read(place.file()).unwrap(), seen)
    };
    let progress = |passes| {
        let done = move |pass| (1..=3).map(move |batch| CalibrationProgress { pass, passes, batch, batches: 3 });
        (1..=passes).flat_map(done).collect::<Vec<_>>()
    };
    let (whole, seen) = collect(2 << 30);
    assert_eq!(seen, progress(1));
    // Less than any group needs: one of the two at a time.
    let (parts, seen) = collect(1);
    assert_eq!(seen, progress(2));
    assert!(whole == parts, "the files differ");
}

#[test]
fn paths_are_those_of_the_fields() {
    #[derive(Module, Debug)]
    struct Nested {
        blocks: Vec<Block>,
        head: Linear,
    }
    let model = Nested { blocks: vec![Block::new(), Block::new()], head: dense(3, 4) };
    let mut found: Vec<String> = weight_paths(&model).into_values().collect();
    found.sort();
    let blocks = (0..2).flat_map(|i| ["key", "output", "query"].map(|layer| format!("blocks.{i}.{layer}.weight")));
    let expected: Vec<String> = blocks.chain(["head.weight".to_owned()]).collect();
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_collected_is_refused() {
    let (block, batches, place) = (Block::new(), batches(), Place::new());
    let (weights, options) = (weight_paths(&block), CalibrationOptions::new());
    let none: [Tensor<3>; 0] = [];
    let error = quietly(&weights, &none, |_| panic!("a batch"), &options, &place.file()).unwrap_err();
    assert!(matches!(error, CalibrationError::NoBatch), "{error}");
    let error = quietly(&weights, &batches, |_| None, &options, &place.file()).unwrap_err();
    assert!(matches!(error, CalibrationError::NothingSeen { weights: 3 }), "{error}");
    assert!(place.is_empty());

    fs::write(place.file(), "mine").unwrap();
    let forward = || plain(|batch: &Tensor<3>| drop(block.forward(batch.clone())));
    let error = quietly(&weights, &batches, forward(), &options, &place.file()).unwrap_err();
    let CalibrationError::Archive(error) = error else { panic!("{error}") };
    assert!(matches!(*error, ArchiveError::OutputExists { .. }), "{error}");
    assert_eq!(fs::read(place.file()).unwrap(), b"mine");
    let options = CalibrationOptions { overwrite: true, ..options };
    let error = quietly(&weights, &batches, forward(), &options, &place.file()).unwrap_err();
    assert!(error.to_string().contains("is no file that PIXEL wrote"), "{error}");
    assert_eq!(fs::read(place.file()).unwrap(), b"mine");
    fs::remove_file(place.file()).unwrap();
    for _ in 0..2 {
        quietly(&weights, &batches, forward(), &options, &place.file()).unwrap();
        assert!(place.open().group("query.weight").is_some());
    }
}

#[test]
fn a_model_that_panics_leaves_nothing_behind() {
    let (block, batches, place) = (Block::new(), batches(), Place::new());
    let (weights, options) = (weight_paths(&block), CalibrationOptions::new());
    let mut calls = 0;
    let failing = |batch: &Tensor<3>| {
        calls += 1;
        block.forward(batch.clone());
        assert!(calls < 3, "the model fails");
        None
    };
    catch_unwind(AssertUnwindSafe(|| quietly(&weights, &batches, failing, &options, &place.file()))).unwrap_err();
    assert!(place.is_empty());
    // Nobody listens any more, and the next calibration may begin.
    block.forward(batches[0].clone());
    let forward = plain(|batch: &Tensor<3>| drop(block.forward(batch.clone())));
    quietly(&weights, &batches, forward, &options, &place.file()).unwrap();
}

#[cfg(feature = "autodiff")]
mod gradients {
    use super::*;
    use pixel_core::archive::calibration::Weighting;

    /// `loss = Σ c_j·y_j²` over all tokens, for `y = second(tanh(first(x)))`.
    #[derive(Module, Debug)]
    struct Mlp {
        first: Projection,
        second: Projection,
    }

    const COSTS: [f32; D_OUTPUT] = [0.5, 1.0, 3.0, 0.1, 2.0, 1.5, 0.7];

    impl Mlp {
        fn loss(&self, x: &Tensor<3>) -> Option<Tensor<1>> {
            // Weights and taps are on the device with gradients, and so is what is computed with them.
            let y = self.second.forward(tanh(self.first.forward(x.clone())));
            let costs = Tensor::<1>::from_floats(COSTS, &y.device());
            Some((y.square() * costs.unsqueeze()).sum())
        }
    }

    fn options() -> CalibrationOptions {
        CalibrationOptions { weighting: Weighting::Gradient, ..CalibrationOptions::new() }
    }

    /// `W·x + b` in f64, with `W` `[d_input, d_output]` as Burn stores it.
    fn apply(linear: &Linear, x: &[f64]) -> Vec<f64> {
        let bias = host(linear.bias.as_ref().unwrap().val());
        let weight = host(linear.weight.val());
        let mut y: Vec<f64> = bias.iter().map(|&b| f64::from(b)).collect();
        for (row, x) in weight.chunks_exact(y.len()).zip(x) {
            row.iter().zip(&mut y).for_each(|(&w, y)| *y += f64::from(w) * x);
        }
        y
    }

    /// `‖g‖²/d_output` of the outputs of both layers, for one token.
    fn powers(first: &Linear, second: &Linear, x: &[f64]) -> [f64; 2] {
        let h: Vec<f64> = apply(first, x).into_iter().map(f64::tanh).collect();
        let y = apply(second, &h);
        let g2: Vec<f64> = y.iter().zip(COSTS).map(|(y, c)| 2.0 * f64::from(c) * y).collect();
        let weight = host(second.weight.val());
        let back = weight.chunks_exact(D_OUTPUT).map(|row| row.iter().zip(&g2).map(|(&w, g)| f64::from(w) * g).sum());
        let g1: Vec<f64> = back.zip(&h).map(|(sum, h): (f64, _)| sum * (1.0 - h * h)).collect();
        [g1, g2].map(|g| g.iter().map(|g| g * g).sum::<f64>() / g.len() as f64)
    }

    /// `Σ w·x·xᵀ / tokens`.
    fn weighted(d_input: usize, inputs: &[Vec<f64>], weights: &[f64]) -> Moments {
        let triangle = (0..d_input).flat_map(|i| (0..=i).map(move |j| (i, j)));
        let sum = |(i, j)| inputs.iter().zip(weights).map(|(x, w): (&Vec<f64>, _)| w * x[i] * x[j]).sum::<f64>();
        Moments::from_lower_triangle(d_input, triangle.map(|place| sum(place) / inputs.len() as f64))
    }

    fn assert_weighted(first: Projection, second: Projection) {
        let dense = |layer: &Projection| match layer.to_dense() {
            Projection::Dense(linear) => linear,
            other => panic!("{other:?} is dense"),
        };
        let linears = (dense(&first), dense(&second));
        let (model, batches, place) = (Mlp { first, second }.train(), batches(), Place::new());
        let weights = weight_paths(&model);
        quietly(&weights, &batches, |batch| model.loss(batch), &options(), &place.file()).unwrap();

        let inputs = all(&batches, |batch| batch);
        let inputs: Vec<Vec<f64>> =
            inputs.chunks_exact(D_INPUT).map(|x| x.iter().map(|&x| f64::from(x)).collect()).collect();
        let inner: Vec<Vec<f64>> =
            inputs.iter().map(|x| apply(&linears.0, x).into_iter().map(f64::tanh).collect()).collect();
        let powers: Vec<[f64; 2]> = inputs.iter().map(|x| powers(&linears.0, &linears.1, x)).collect();
        let of_layer = |layer: usize| powers.iter().map(|powers| powers[layer]).collect::<Vec<_>>();
        let calibration = place.open();
        assert_eq!(calibration.description().weighting, Weighting::Gradient);
        assert_moments(&calibration, "first.weight", &weighted(D_INPUT, &inputs, &of_layer(0)));
        assert_moments(&calibration, "second.weight", &weighted(D_INNER, &inner, &of_layer(1)));
        assert_eq!(calibration.group("second.weight").unwrap().tokens, 30);
    }

    #[test]
    fn tokens_weigh_by_the_power_of_their_gradients() {
        assert_weighted(dense(D_INPUT, D_INNER).into(), dense(D_INNER, D_OUTPUT).into());
    }

    #[test]
    fn packed_layers_have_gradients_too() {
        assert_weighted(packed(&dense(D_INPUT, D_INNER)).into(), packed(&dense(D_INNER, D_OUTPUT)).into());
    }

    #[test]
    fn each_weight_has_a_group_of_its_own() {
        let (block, batches, place) = (Block::new().train(), batches(), Place::new());
        let forward = |batch: &Tensor<3>| Some(block.forward(batch.clone()).sum());
        let weights = weight_paths(&block);
        let description = quietly(&weights, &batches, forward, &options(), &place.file()).unwrap();
        let expected = ["key.weight", "output.weight", "query.weight"].map(|name| (name, vec![name]));
        assert_eq!(members(&description), expected.into());
    }

    #[test]
    fn passes_change_nothing() {
        let (block, batches) = (Block::new().train(), batches());
        let collect = |memory_bytes| {
            let place = Place::new();
            let forward = |batch: &Tensor<3>| Some(block.forward(batch.clone()).square().sum());
            let options = CalibrationOptions { memory_bytes, ..options() };
            quietly(&weight_paths(&block), &batches, forward, &options, &place.file()).unwrap();
            fs::read(place.file()).unwrap()
        };
        assert!(collect(2 << 30) == collect(1), "the files differ");
    }

    #[test]
    fn a_layer_may_sit_out_a_batch() {
        let model = Mlp { first: dense(D_INPUT, D_OUTPUT).into(), second: dense(D_INPUT, D_OUTPUT).into() }.train();
        let batches: Vec<_> = batches().into_iter().enumerate().collect();
        let forward = |(index, batch): &(usize, Tensor<3>)| {
            let layer = if *index == 1 { &model.second } else { &model.first };
            Some(layer.forward(batch.clone()).square().sum())
        };
        let place = Place::new();
        let options = CalibrationOptions { memory_bytes: 1, ..options() };
        quietly(&weight_paths(&model), &batches, forward, &options, &place.file()).unwrap();
        let tokens = |weight: &str| place.open().group(weight).unwrap().tokens;
        assert_eq!((tokens("first.weight"), tokens("second.weight")), (20, 10));
    }

    #[test]
    fn what_has_no_gradient_is_refused() {
        let (model, batches, place) = (
            Mlp { first: dense(D_INPUT, D_INNER).into(), second: dense(D_INNER, D_OUTPUT).into() },
            batches(),
            Place::new(),
        );
        let weights = weight_paths(&model);
        let refuse = |forward: &dyn Fn(&Tensor<3>) -> Option<Tensor<1>>| {
            let error = quietly(&weights, &batches, forward, &options(), &place.file()).unwrap_err();
            assert!(place.is_empty(), "{error}");
            error
        };
        // Not in training mode.
        let error = refuse(&|batch| model.loss(batch));
        assert!(matches!(&error, CalibrationError::NoGradient { weight } if weight == "first.weight"), "{error}");

        let model = model.clone().train();
        let error = refuse(&|batch| {
            model.loss(batch);
            None
        });
        assert!(matches!(error, CalibrationError::NoLoss { batch: 0 }), "{error}");
        // The second layer runs, and the loss does not depend on it.
        let error = refuse(&|batch| {
            let h = model.first.forward(batch.clone());
            model.second.forward(h.clone());
            Some(h.sum())
        });
        assert!(matches!(&error, CalibrationError::NoGradient { weight } if weight == "second.weight"), "{error}");
        // A loss that has left the graph.
        let error = refuse(&|batch| Some(model.loss(batch)?.without_autodiff()));
        assert!(matches!(&error, CalibrationError::NoGradient { weight } if weight == "first.weight"), "{error}");
    }
}

#[test]
fn sums_in_memory_are_those_of_the_file() {
    let (block, batches, place) = (Block::new(), batches(), Place::new());
    let forward = || plain(|batch: &Tensor<3>| drop(block.forward(batch.clone())));
    quietly(&weight_paths(&block), &batches, forward(), &CalibrationOptions::new(), &place.file()).unwrap();
    let paths = weight_paths(&block);
    let sums = calibrate_in_memory(&paths, &batches, forward(), Weighting::Uniform, &mut |_| {}).unwrap();
    let file = place.open();
    assert_eq!(sums.tokens(), ["key.weight", "output.weight", "query.weight"].map(|weight| (weight, 30)).into());
    for weight in paths.values() {
        assert_moments(&file, weight, &sums.moments(weight).unwrap().unwrap());
    }
    assert!(sums.moments("other.weight").unwrap().is_none());
}

#[test]
fn a_layer_that_reads_two_widths_is_refused() {
    let mut sums = InputSums::default();
    sums.observe("fc.weight", &draws::normal([3, 8])).unwrap();
    let error = sums.observe("fc.weight", &draws::normal([2, 3, 6])).unwrap_err();
    assert_eq!(error.to_string(), "the layer of \"fc.weight\" reads inputs of width 6, and read some of width 8");
    sums.observe("fc.weight", &draws::normal([2, 3, 8])).unwrap();
    assert_eq!(sums.tokens()["fc.weight"], 9);
}

/// A model whose inputs follow one another closely loses far less where they are known.
#[test]
fn a_calibrated_model_keeps_its_outputs() {
    #[derive(Module, Debug)]
    struct Wide {
        first: Projection,
        second: Projection,
    }
    impl Wide {
        fn forward(&self, x: Tensor<2>) -> Tensor<2> {
            self.second.forward(tanh(self.first.forward(x)))
        }
    }
    let mix = draws::normal([8, 64]);
    let batch = || draws::normal([256, 8]).matmul(mix.clone()) + draws::normal([256, 64]) * 0.2;
    let batches: Vec<_> = (0..3).map(|_| batch()).collect();
    let model = Wide { first: dense(64, 96).into(), second: dense(96, 64).into() };
    let config = ReplaceConfig::new("lapped:2:beam=16".parse().unwrap());
    let (plain, without) = replace_linear_layers(model.clone(), &config).unwrap();
    let run = |model: &Wide, batch: &Tensor<2>| drop(model.forward(batch.clone()));
    let (calibrated, report) = compress_model(model.clone(), &batches, run, &config).unwrap();
    assert_eq!(without.layers[0].output_error, None);
    let head = |report: &ReplacementReport| report.to_string().lines().next().unwrap().to_owned();
    assert!(head(&report).contains("error  outputs") && !head(&without).contains("outputs"), "{report}");
    for layer in &report.layers {
        assert!(layer.output_error.unwrap() < 0.7 * layer.relative_error, "{report}");
    }
    let x = batch();
    let error = |other: &Wide| {
        let (found, expected) = (host(other.forward(x.clone())), host(model.forward(x.clone())));
        pixel_core::math::metrics::ErrorSums::between(&expected, &found).relative_mse()
    };
    let (before, after) = (error(&plain), error(&calibrated));
    println!("relative squared error of the outputs: {before:.4} without calibration, {after:.4} with");
    assert!(after < 0.5 * before, "{before} {after}");

    // One of another model is refused, and one by the paths of the fields is found.
    let mut sums = InputSums::default();
    sums.observe("other.weight", &x).unwrap();
    let other = config.clone().with_calibration(sums.clone());
    let message = replace_linear_layers(model.clone(), &other).unwrap_err().to_string();
    assert!(message.starts_with("the calibration knows none of the 2 weights"), "{message}");
    sums.observe("first.Dense.weight", &x).unwrap();
    let by_path = config.clone().with_calibration(sums);
    let (_, half) = replace_linear_layers(model.clone(), &by_path).unwrap();
    assert!(half.layers[0].output_error.is_some() && half.layers[1].output_error.is_none());

    // The same by a file, and layer by layer.
    let place = Place::new();
    let forward = |batch: &Tensor<2>| {
        run(&model, batch);
        None
    };
    quietly(&weight_paths(&model), &batches, forward, &CalibrationOptions::new(), &place.file()).unwrap();
    let filed = config.with_calibration(place.open());
    let (filed, _) = replace_linear_layers(model.clone(), &filed).unwrap();
    assert!(error(&filed) < 1.05 * after);
    let spec = CodingSpec::new("lapped:2:beam=16".parse().unwrap()).with_rotation(Some(0));
    let encoder = |weight| Encoder::new(&spec).with_moments(place.open().moments(weight).unwrap());
    let (first, outcome) = model.first.compress_with(encoder("first.weight")).unwrap();
    let output = outcome.unwrap().output.unwrap().sums.relative_mse().sqrt();
    assert!(abs_diff_eq!(output, report.layers[0].output_error.unwrap(), epsilon = 1e-3), "{output} {report}");
    assert!(first.compress_with(encoder("first.weight")).unwrap().1.is_none());
}
