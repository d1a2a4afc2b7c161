//! That the dense bytes really leave. One test, since the allocator counts for the whole process.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::store::ModuleRecord;
use burn::tensor::{Device, Tensor};
use peak_alloc::PeakAlloc;
use pixel_core::CodecSpec;
use pixel_nn::{ReplaceConfig, replace_linear_layers, replace_skeleton};
use std::time::Instant;

#[global_allocator]
static BYTES: PeakAlloc = PeakAlloc;

const WIDTH: usize = 1024;
const LAYERS: usize = 6;
/// Bytes of one dense layer, its bias apart.
const DENSE: usize = 4 * WIDTH * WIDTH;
/// Names, ids, shapes, vectors of a batch.
const SLACK: usize = 256 << 10;

fn lazy(device: &Device) -> Vec<Linear> {
    (0..LAYERS).map(|_| LinearConfig::new(WIDTH, WIDTH).with_bias(false).init(device)).collect()
}

fn forward(layers: &[Linear], x: Tensor<2>) -> Tensor<2> {
    layers.iter().fold(x, |x, layer| layer.forward(x))
}

/// Bytes held above `start`, and the most since the last call.
fn usage(start: usize) -> (usize, usize) {
    let found = (BYTES.current_usage().saturating_sub(start), BYTES.peak_usage().saturating_sub(start));
    BYTES.reset_peak_usage();
    found
}

#[test]
fn the_dense_bytes_leave_and_a_forward_pass_holds_one_layer_at_a_time() {
    let device = Device::flex();
    // Pools of threads, tables of codecs and the like come into being here.
    let config = ReplaceConfig::new(CodecSpec::new("trellis", 2.0).with_option("window", 8));
    let (warm, _) = replace_linear_layers(lazy(&device).split_off(LAYERS - 1), &config).unwrap();
    forward(&warm, Tensor::ones([1, WIDTH], &device));
    drop(warm);

    let start = BYTES.current_usage();
    usage(start);
    let dense = lazy(&device);
    let x = Tensor::<2>::ones([1, WIDTH], &device);
    forward(&dense, x.clone());
    let (before, _) = usage(start);
    let clock = Instant::now();
    let (small, report) = replace_linear_layers(dense, &config).unwrap();
    let encoding = clock.elapsed();
    let (after, walk_peak) = usage(start);
    let device_bytes = report.device_bytes();
    for codec in ["uniform:4", "trellis:2:window=8"] {
        let config = ReplaceConfig::new(codec.parse().unwrap());
        let (layers, _) = replace_linear_layers(lazy(&device).split_off(LAYERS - 2), &config).unwrap();
        let (held, _) = usage(start);
        forward(&layers, x.clone());
        let (_, peak) = usage(start);
        println!("{codec}: a forward pass peaks at {} bytes above what is held", peak - held);
        assert!(peak - held >= DENSE && peak - held < DENSE + SLACK, "{codec} {}", peak - held);
    }
    usage(start);
    let expected = forward(&small, x.clone()).into_data();
    println!("{report}");
    println!("held: {before} bytes before, {after} after ({device_bytes} by the report)");
    println!("the walk peaks at {} bytes above the dense model", walk_peak - before);
    assert!(before >= LAYERS * DENSE, "{before}");
    assert!(after >= device_bytes && after < device_bytes + SLACK, "{after} {device_bytes}");
    assert!(walk_peak < before + 2 * DENSE + SLACK, "{walk_peak} {before}");

    let bytes = small.into_record().into_bytes().unwrap();
    usage(start);
    let (held, _) = usage(start);
    let clock = Instant::now();
    let skeleton = replace_skeleton(lazy(&device), &config).unwrap();
    let (_, peak) = usage(start);
    println!("skeleton: {:?} against {encoding:?} of encoding, peak {} bytes", clock.elapsed(), peak - held);
    assert!(peak - held < device_bytes + 2 * DENSE, "{peak} {held}");
    let loaded = skeleton.load_record(ModuleRecord::from_bytes(bytes).unwrap());
    assert_eq!(forward(&loaded, x).into_data(), expected);
}
