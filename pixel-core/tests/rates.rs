//! Rates chosen under a mean, where a codec's options make trouble for some of them.

mod common;

use common::chain;
use pixel_core::Shape;
use pixel_core::archive::calibration::{
    Accumulator, Calibration, CalibrationWriter, Description, Group, Source, Weighting,
};
use pixel_core::archive::{ArchiveError, Checkpoint};
use pixel_core::compressor::{Allocation, RateRequest, RateTarget, Scope, allocate_rates};
use pixel_core::plan::{Decision, Recipe};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::Arc;

fn gaussian(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()
}

/// A checkpoint of the layers `a` and `b`, both of `shape`, and a calibration of them.
fn calibrated(dir: &Path, shape: Shape) -> (Checkpoint, Arc<Calibration>) {
    let (m, n) = (shape.d_output(), shape.d_input());
    let bytes = |seed| gaussian(m * n, seed).iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>();
    let (a, b) = (bytes(1), bytes(2));
    let view = |bytes| TensorView::new(Dtype::F32, vec![m, n], bytes).unwrap();
    let source = dir.join("source.safetensors");
    safetensors::serialize_to_file([("a.weight", view(&a)), ("b.weight", view(&b))], None, &source).unwrap();

    let mut sums = Accumulator::new(n);
    sums.add_inputs(&gaussian(64 * n, 3));
    let text = Source { name: "text".into(), blake3: "0".repeat(64), tokens: 64 };
    let mut description = Description::new(Weighting::Uniform, vec![text]);
    let weights = vec!["a.weight".to_owned(), "b.weight".to_owned()];
    description.groups.insert("a.weight".into(), Group { d_input: n, tokens: 64, weights });
    let path = dir.join("calibration.safetensors");
    let mut writer = CalibrationWriter::create(&path, description, false).unwrap();
    writer.write("a.weight", &sums).unwrap();
    writer.finish().unwrap();
    (Checkpoint::open(source).unwrap(), Arc::new(Calibration::open(path).unwrap()))
}

/// The allocation for layers under `[default]`, with a mean of `bits`.
fn allocate(
    (checkpoint, calibration): &(Checkpoint, Arc<Calibration>),
    default: &str,
    bits: f64,
) -> Result<Allocation, ArchiveError> {
    let recipe = Recipe::from_toml(&format!("min_weights = 1\n[default]\n{default}")).unwrap();
    let target = RateTarget { bits, scope: Scope::Layers };
    let request = RateRequest { calibration: Arc::clone(calibration), target, fitter: None };
    allocate_rates(checkpoint, &recipe, &request, 1, &())
}

/// The rate that the recipe of `allocation` has for `name`.
fn rate(allocation: &Allocation, name: &str, shape: Shape) -> f64 {
    let recipe = allocation.recipe.clone().compile().unwrap();
    match recipe.decide(name, &[shape.d_output(), shape.d_input()], true).unwrap() {
        Decision::Compress(spec) => spec.codec.bits,
        Decision::Keep(reason) => panic!("{name} is kept: {reason}"),
    }
}

/// A tile of this matrix is half of it; one of the rows that are sampled is all of them, and twice as wide.
#[test]
fn tiles_of_the_whole_matrix_are_measured_on_the_rows_of_a_sample() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape::new(450, 600).unwrap();
    let width = |rows| {
        let codec = "matching:2:tile=0".parse::<pixel_core::CodecSpec>().unwrap().build().unwrap();
        codec.block_width(Shape::new(rows, 600).unwrap())
    };
    assert_eq!((width(450), width(128)), (300, 600));
    let calibrated = calibrated(dir.path(), shape);
    let options = "codec = 'matching'\noptions = { tile = 0, patterns = 1, beam = 1 }\nfeedback = true";
    let allocation = allocate(&calibrated, options, 3.0).unwrap();
    assert_eq!(allocation.tensors.len(), 2);
    assert!(allocation.mean_bits <= 3.0);
    for tensor in &allocation.tensors {
        // So few patterns explain next to nothing of a matrix, and nothing more than there is.
        let relative = tensor.loss / shape.num_weights() as f64;
        assert!(relative > 0.9 && relative <= 1.0 + 1e-6, "{}: {relative}", tensor.name);
    }
}

#[test]
fn a_rate_that_an_option_forbids_is_not_chosen_and_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape::new(24, 40).unwrap();
    let calibrated = calibrated(dir.path(), shape);
    // Half a bit for each of nine weights has no room for a term.
    let refused = "matching:0.5:tile=3".parse::<pixel_core::CodecSpec>().unwrap().build().unwrap_err();
    assert!(refused.to_string().starts_with("tile = 3 holds 4 bits"), "{refused}");
    let allocate = |options: &str, bits| {
        allocate(&calibrated, &format!("codec = 'matching'\nbits = 2\nrotate = false\n{options}"), bits)
    };
    let three = "options = { tile = 3, patterns = 4, beam = 1 }";
    for bits in [1.6, 2.3, 3.1, 9.0] {
        let allocation = allocate(three, bits).unwrap();
        assert!(allocation.mean_bits <= bits);
        let rates = ["a.weight", "b.weight"].map(|name| rate(&allocation, name, shape));
        assert!(rates.iter().all(|&rate| rate >= 1.0), "{bits}: {rates:?}");
        assert!(bits < 9.0 || rates == [4.0; 2], "{rates:?}");
    }
    // Where the option allows it, half a bit meets a mean that is refused here.
    let mean = 1.1;
    let chosen = allocate("options = { tile = 8, patterns = 4, beam = 1 }", mean).unwrap();
    assert_eq!(["a.weight", "b.weight"].map(|name| rate(&chosen, name, shape)), [0.5; 2]);
    let error = allocate(three, mean).unwrap_err();
    assert!(matches!(error, ArchiveError::Budget { smallest, .. } if smallest > mean), "{error:?}");
    assert!(chain(&error).contains("a mean of 1.1 bits a weight cannot be met"), "{error}");
}
