//! Attention with dense projections and with ones at 2 bits, coded the quickest way: a prompt of 128 tokens, and a
//! token after it.

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pixel_core::CodecSpec;
use pixel_nn::{KeyValueCache, PIXELAttention, PIXELAttentionConfig};

/// Tokens of the prompt.
const PROMPT: usize = 128;

fn attention(c: &mut Criterion) {
    let device = Device::flex();
    // SmolLM2's heads, and those of a model of 7 billion parameters.
    for (d_model, heads, kv_heads) in [(576, 9, 3), (4096, 32, 32)] {
        let dense = PIXELAttentionConfig::new(d_model, heads).with_n_kv_heads(kv_heads).with_causal(true).init(&device);
        let mut group = c.benchmark_group(format!("attention {d_model}"));
        group.sample_size(10);
        let compressed = ["additive:2:beam=1", "trellis:2:window=8"].map(|codec| {
            let codec: CodecSpec = codec.parse().expect("a codec");
            (codec.codec.clone(), dense.compress(&codec, 0).expect("finite weights"))
        });
        for (name, attention) in [("dense".to_owned(), dense)].into_iter().chain(compressed) {
            let prompt = Tensor::<3>::random([1, PROMPT, d_model], Distribution::Default, &device);
            group.bench_function(BenchmarkId::new("prompt", &name), |b| b.iter(|| prefill(&attention, &prompt).0));
            let (_, cache) = prefill(&attention, &prompt);
            let token = Tensor::<3>::random([1, 1, d_model], Distribution::Default, &device);
            group.bench_function(BenchmarkId::new("token", &name), |b| {
                b.iter(|| attention.forward_cached(token.clone(), &mut cache.clone()).into_data());
            });
        }
        group.finish();
    }
}

fn prefill(attention: &PIXELAttention, prompt: &Tensor<3>) -> (burn::tensor::TensorData, KeyValueCache) {
    let mut cache = KeyValueCache::new();
    (attention.forward_cached(prompt.clone(), &mut cache).into_data(), cache)
}

criterion_group!(benches, attention);
criterion_main!(benches);
