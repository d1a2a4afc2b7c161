//! Encoding: weights per second on one thread, every codec at 2 bits and the trellis at every rate.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pixel_bench::gaussian;
use pixel_core::codec::RowFeedback;
use pixel_core::codec::lapped::dictionary::Rate;
use pixel_core::codec::trellis::with_simd;
use pixel_core::math::simd::{Simd, SimdLevel};
use pixel_core::{CodecSpec, compress_weight};

fn encode(c: &mut Criterion) {
    let weight = gaussian(256, 256, 1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let mut group = c.benchmark_group("encode");
    group.throughput(Throughput::Elements(weight.shape().num_weights() as u64)).sample_size(10);
    let specs = ["uniform:2", "additive:2", "lapped:2", "matching:2", "trellis:2:window=16", "trellis:2:beam=4"]
        .map(str::to_owned);
    let trellis = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0].map(|bits| format!("trellis:{bits}:window=12"));
    for text in specs.iter().chain(&trellis) {
        let spec: CodecSpec = text.parse().expect("a codec");
        group.bench_function(BenchmarkId::from_parameter(text), |b| {
            b.iter(|| pool.install(|| compress_weight(weight.as_ref(), &spec, None)).expect("a finite weight"));
        });
    }
    group.finish();
}

/// The trellis's search alone, one column block of 256 rows, by instruction set. A machine that lacks one shows the
/// next narrower.
fn search(c: &mut Criterion) {
    let weight = gaussian(256, 8, 1);
    let mut group = c.benchmark_group("trellis search");
    group.throughput(Throughput::Elements(weight.shape().num_weights() as u64)).sample_size(20);
    for bits in [2.0, 4.0] {
        for window in [12, 16] {
            for simd in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512] {
                let codec = with_simd(bits, window, simd);
                let name = format!("{bits} bits, window {window}, {simd:?}");
                let mut decoded = vec![0.0; weight.as_slice().len()];
                group.bench_function(BenchmarkId::from_parameter(name), |b| {
                    b.iter(|| {
                        let mut encoder = codec.encoder(weight.as_ref()).into_blocks().expect("tiles");
                        encoder.encode_block(0, weight.as_slice(), &mut decoded);
                    });
                });
            }
        }
    }
    group.finish();
}

/// The lapped code's search alone, at its default beam, by instruction set, and with errors that are fed back.
fn lapped_search(c: &mut Criterion) {
    let weight = gaussian(64, 1024, 1);
    let n = weight.shape().d_input();
    // What feeds back next to nothing takes as long as what does.
    let feedback = RowFeedback::new(n, vec![1e-6; n * n]);
    let mut group = c.benchmark_group("lapped search");
    group.throughput(Throughput::Elements(weight.shape().num_weights() as u64)).sample_size(10);
    for bits in [2.0, 4.0] {
        let rate = Rate::of(bits).expect("a rate");
        for simd in [SimdLevel::Portable, SimdLevel::Avx2, SimdLevel::Avx512Vbmi] {
            let search = rate.search(LAPPED_BEAM).with_simd(Simd::at_most(simd));
            for (name, feedback) in [("", None), (", fed back", Some(&feedback))] {
                let id = BenchmarkId::from_parameter(format!("{bits} bits, {simd:?}{name}"));
                group.bench_function(id, |b| b.iter(|| search.encode(weight.as_ref(), feedback, |_| {})));
            }
        }
    }
    group.finish();
}

/// The default of the codec.
const LAPPED_BEAM: usize = 256;

criterion_group!(benches, encode, search, lapped_search);
criterion_main!(benches);
