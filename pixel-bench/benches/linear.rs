//! Products, every contender at every shape and batch, on one thread.
//! `cargo bench -p pixel-bench --bench linear -- FILTER` picks some; the ratios of `docs/performance.md` come from the
//! program `report`, which takes turns.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pixel_bench::contenders::{Size, all};
use pixel_bench::{BATCHES, SHAPES};

fn linear(c: &mut Criterion) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    for [d_output, d_input] in SHAPES {
        for batch in BATCHES {
            let size = Size { d_output, d_input, batch };
            let mut group = c.benchmark_group(format!("linear {d_output}x{d_input}, batch {batch}"));
            group.throughput(Throughput::Elements((size.num_weights() * batch) as u64)).sample_size(10);
            for mut contender in all(size) {
                let name = BenchmarkId::from_parameter(&contender.name);
                group.bench_function(name, |b| b.iter(|| pool.install(|| contender.run())));
            }
            group.finish();
        }
    }
}

criterion_group!(benches, linear);
criterion_main!(benches);
