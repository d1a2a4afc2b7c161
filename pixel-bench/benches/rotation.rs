//! The rotation of one row of activations, by width: powers of two, and widths with an odd part.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pixel_core::Rotation;

fn rotation(c: &mut Criterion) {
    let mut group = c.benchmark_group("rotation");
    for width in [384, 576, 1536, 4096, 11008, 14336] {
        let rotation = Rotation::new(width, 1);
        let (mut row, mut scratch) = (vec![0.5; width], rotation.scratch());
        group.throughput(Throughput::Elements(width as u64));
        group.bench_function(BenchmarkId::from_parameter(width), |b| {
            b.iter(|| rotation.forward(&mut row, &mut scratch))
        });
    }
    group.finish();
}

criterion_group!(benches, rotation);
criterion_main!(benches);
