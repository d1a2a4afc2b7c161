//! Synthesis of a dense weight from its packed form, one thread, rotation included.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pixel_bench::gaussian;
use pixel_core::{CodecSpec, compress_weight};

fn synthesize(c: &mut Criterion) {
    let weight = gaussian(256, 1536, 1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut group = c.benchmark_group("synthesize");
    group.throughput(Throughput::Elements(weight.shape().num_weights() as u64)).sample_size(20);
    for text in ["uniform:2", "additive:2", "lapped:2", "matching:2", "trellis:2:window=12", "trellis:4:window=12"] {
        let spec: CodecSpec = text.parse().expect("a codec");
        for rotation in [None, Some(1)] {
            let (packed, _) = compress_weight(weight.as_ref(), &spec, rotation).expect("a finite weight");
            let name = if rotation.is_some() { format!("{text}, rotated") } else { text.to_owned() };
            group
                .bench_function(BenchmarkId::from_parameter(name), |b| b.iter(|| pool.install(|| packed.synthesize())));
        }
    }
    group.finish();
}

criterion_group!(benches, synthesize);
criterion_main!(benches);
