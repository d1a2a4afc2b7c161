//! Tokens per second of SmolLM2-135M, dense and compressed, if `scripts/fetch-models.sh` has fetched it: one token
//! after a prompt of 16. The compressed models have the rates of the codes and no more: they are coded without
//! calibration.

use burn::tensor::{Device, Int, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pixel_core::archive::Checkpoint;
use pixel_core::compressor::{RunOptions, compress_checkpoint};
use pixel_core::plan::{Plan, Recipe};
use pixel_models::{CausalModel, LoadOptions, load};
use std::path::Path;

fn model(c: &mut Criterion) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M");
    if !source.is_dir() {
        eprintln!("skipped: {} is not there; scripts/fetch-models.sh fetches it", source.display());
        return;
    }
    let work = tempfile::tempdir().expect("a directory");
    let mut group = c.benchmark_group("model SmolLM2-135M");
    group.throughput(Throughput::Elements(1)).sample_size(20);
    let mut bench = |name: &str, path: &Path| {
        let model = load(path, &LoadOptions::default(), &Device::flex()).and_then(|model| model.into_causal());
        let CausalModel { network, .. } = model.expect("a model");
        let mut cache = network.cache();
        let tokens = |values: Vec<i32>| {
            let len = values.len();
            Tensor::<2, Int>::from_data(TensorData::new(values, [1, len]), &Device::flex())
        };
        network.forward_cached(tokens((100..116).collect()), &mut cache);
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| network.forward_cached(tokens(vec![200]), &mut cache.clone()).into_data());
        });
    };
    bench("dense", &source);
    for (codec, bits) in [("additive", 2.0), ("lapped", 2.0), ("trellis", 2.0), ("trellis", 4.0)] {
        let path = work.path().join(format!("{codec}-{bits}"));
        compress(&source, &path, codec, bits);
        bench(&format!("{codec}:{bits}"), &path);
    }
    group.finish();
}

fn compress(source: &Path, path: &Path, codec: &str, bits: f64) {
    let mut recipe = Recipe::default();
    recipe.layers.codec = Some(codec.to_owned());
    recipe.layers.bits = Some(bits);
    if codec == "trellis" {
        // The speed does not depend on the window, the time to encode does.
        recipe.layers.options = Some([("window".to_owned(), 12)].into());
    }
    let checkpoint = Checkpoint::open(source).expect("a checkpoint");
    let plan = Plan::new(&checkpoint, &recipe.compile().expect("a recipe")).expect("a plan");
    compress_checkpoint(&checkpoint, &plan, path, RunOptions::default(), &()).expect("an archive");
    for file in ["config.json", "tokenizer.json", "generation_config.json"] {
        if source.join(file).is_file() && !path.join(file).exists() {
            std::fs::copy(source.join(file), path.join(file)).expect("a copy");
        }
    }
}

criterion_group!(benches, model);
criterion_main!(benches);
