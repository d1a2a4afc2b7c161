//! The solvers of singular value decompositions, at rank 64; the exact ones find all values whatever the rank.
//!
//! `cargo bench -p pixel-cli -p pixel-bench -p pixel-examples --bench svd`; LAPACK's with
//! `--features pixel-bench/lapack` and `OPENBLAS_NUM_THREADS=1`, for faer runs on one thread.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pixel_bench::{gaussian, solvers};
use std::hint::black_box;

fn svd(c: &mut Criterion) {
    let mut group = c.benchmark_group("svd");
    group.sample_size(10);
    for (rows, columns) in [(256, 256), (1024, 1024), (4096, 1024)] {
        let matrix = gaussian(rows, columns, 1);
        for solver in solvers() {
            let id = BenchmarkId::new(solver.name(), format!("{rows}x{columns}"));
            group.bench_function(id, |b| b.iter(|| black_box(solver.svd(matrix.as_ref(), 64).unwrap())));
        }
    }
    group.finish();
}

criterion_group!(benches, svd);
criterion_main!(benches);
