//! That compressing holds no more than is predicted. One test, since the allocator counts for the whole process.

use peak_alloc::PeakAlloc;
use pixel_core::archive::Checkpoint;
use pixel_core::archive::calibration::{
    Accumulator, Calibration, CalibrationWriter, Description, Group, Source, Weighting,
};
use pixel_core::compressor::{RunOptions, compress_checkpoint};
use pixel_core::encode::largest_columns;
use pixel_core::plan::{Plan, Recipe, num_workers};
use pixel_core::{CodingSpec, Encoder, Matrix, Moments, PreparedInputs, Shape};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::Arc;

#[global_allocator]
static BYTES: PeakAlloc = PeakAlloc;

/// Sides of the weights: one of a layer, and one so flat that the moments of its inputs are nearly all that is held.
const SIDES: [(usize, usize); 2] = [(512, 768), (64, 1024)];
/// Blocks, sums of rows, what a rotation holds.
const SLACK: u64 = 2 << 20;

/// Numbers in −1 … 1 from an integer hash.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_mul(0x9E37_79B9) ^ seed).wrapping_mul(0x85EB_CA6B) >> 8;
    (0..len as u32).map(|i| hash(i) as f32 / 8_388_608.0 - 1.0).collect()
}

/// The most bytes that `run` holds above those held before it.
fn peak(run: impl FnOnce()) -> u64 {
    let before = BYTES.current_usage();
    BYTES.reset_peak_usage();
    run();
    (BYTES.peak_usage() - before) as u64
}

/// A checkpoint of two layers of `shape` with a calibration of them.
fn calibrated(dir: &Path, shape: Shape) -> (Checkpoint, Arc<Calibration>) {
    let (m, n) = (shape.d_output(), shape.d_input());
    let bytes: Vec<u8> = values(shape.num_weights(), 1).iter().flat_map(|w| w.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![m, n], &bytes).unwrap();
    let source = dir.join("source.safetensors");
    safetensors::serialize_to_file([("a.weight", &view), ("b.weight", &view)], None, &source).unwrap();
    let mut sums = Accumulator::new(n);
    sums.add_inputs(&values(64 * n, 2));
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

#[test]
fn compressing_stays_below_what_is_predicted_for_it() {
    for (m, n) in SIDES {
        check(Shape::new(m, n).unwrap());
    }
}

fn check(shape: Shape) {
    let dir = tempfile::tempdir().unwrap();
    let (checkpoint, calibration) = calibrated(dir.path(), shape);
    let dense = 4 * shape.num_weights() as u64;
    let plan = |codec: &str, protect: usize, include: &str| {
        let text = format!("include = ['{include}']\n[default]\n{codec}\nprotect = {protect}\n");
        let recipe = Recipe::from_toml(&text).unwrap().compile().unwrap();
        let plan = Plan::new(&checkpoint, &recipe).unwrap();
        plan.with_calibration(&checkpoint, Arc::clone(&calibration)).unwrap()
    };
    let compress = |plan: &Plan| {
        let options = RunOptions { threads: 1, overwrite: true };
        compress_checkpoint(&checkpoint, plan, dir.path().join("archive.safetensors"), options, &()).unwrap();
    };
    let codecs = [
        "codec = 'trellis'\nbits = 2\noptions = { window = 8 }",
        "codec = 'additive'\nbits = 2\noptions = { beam = 1 }",
        "codec = 'lapped'\nbits = 2\noptions = { beam = 16 }",
        "codec = 'uniform'\nbits = 3",
    ];
    // Pools of threads, tables of codecs and the like come into being here.
    codecs.iter().for_each(|codec| compress(&plan(codec, 4, "^a[.]")));

    for codec in codecs {
        for protect in [0, 4] {
            let plan = plan(codec, protect, "^a[.]");
            let (found, predicted) = (peak(|| compress(&plan)), plan.peak_memory(1));
            println!("{shape}, {codec}, {protect} protected: {found} bytes of {predicted}");
            assert!(found <= predicted, "{shape} {codec} {protect}: {found} bytes, {predicted} predicted");
            assert!(found > predicted / 2, "{shape} {codec} {protect}: {found} bytes, {predicted} predicted");
        }
    }

    // The weight, a copy to measure the error on and the dense form of what was packed, in addition to the feedback.
    for protect in [0, 4] {
        let copies = if protect > 0 { 3 } else { 1 };
        let spec = CodingSpec::new("trellis:2:window=8".parse().unwrap()).with_rotation(Some(1)).with_protect(protect);
        let predicted = PreparedInputs::peak_bytes(shape, protect) + copies * dense + SLACK;
        let found = peak(|| {
            let weight = Matrix::new(shape, values(shape.num_weights(), 1)).unwrap();
            let moments = Moments::of_inputs(shape.d_input(), &values(8 * shape.d_input(), 2));
            let (packed, _) = Encoder::new(&spec).with_moments(moments).encode(weight).unwrap();
            assert_eq!(packed.protected().len(), protect);
        });
        println!("{shape}, encoder, {protect} protected: {found} bytes of {predicted}");
        assert!(found <= predicted, "{protect}: {found} bytes, {predicted} predicted");
        // Inputs that were prepared are still there, and no more comes on top.
        let found = peak(|| {
            let weight = Matrix::new(shape, values(shape.num_weights(), 1)).unwrap();
            let moments = Moments::of_inputs(shape.d_input(), &values(8 * shape.d_input(), 2));
            let columns = largest_columns(weight.as_ref(), Some(&moments), protect);
            let inputs = PreparedInputs::new(moments, &spec, columns);
            Encoder::new(&spec).with_inputs(&inputs).encode(weight).unwrap();
        });
        assert!(found <= predicted, "{protect}, prepared: {found} bytes, {predicted} predicted");
    }

    // Workers without a tensor of their own help with another's, and hold what it takes to search.
    let (one, two) = (plan(codecs[0], 4, "^a[.]"), plan(codecs[0], 4, "."));
    assert!(one.peak_memory(1) > 3 * dense + PreparedInputs::peak_bytes(shape, 4));
    let search = (one.peak_memory(2) - one.peak_memory(1)) / 3;
    assert!(search > 0 && search < dense, "{search} bytes");
    assert_eq!(one.peak_memory(5), one.peak_memory(1) + 9 * search);
    assert_eq!(two.peak_memory(2), 2 * two.peak_memory(1) + 2 * search);
    assert_eq!(two.peak_memory(0), two.peak_memory(num_workers(0)));
}
