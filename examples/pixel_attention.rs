//! An attention whose projections are patterns, compared with the dense one it came from.
//!
//! ```sh
//! cargo run --release --example pixel_attention
//! cargo run --release --example pixel_attention --features wgpu -- --backend wgpu
//! ```
//!
//! A grouped-query attention with rotary positions, shaped as in a small Llama, is compressed at 4, 3 and 2 bits. The
//! outputs are compared on the same tokens, then a text is decoded token by token with the cache of keys and values,
//! which must give what the full pass gives.

#[path = "common/backend.rs"]
mod backend;
#[path = "common/options.rs"]
mod options;

use anyhow::Result;
use burn::tensor::{Distribution, Tensor};
use comfy_table::{CellAlignment, Table, presets};
use options::Options;
use pixel_core::CodecSpec;
use pixel_nn::attention::RotaryConfig;
use pixel_nn::{KeyValueCache, PIXELAttention, PIXELAttentionConfig, PixelModule};

const D_MODEL: usize = 256;
const TOKENS: usize = 48;

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let device = backend::device(&options.backend)?;
    device.seed(7);
    let dense = PIXELAttentionConfig::new(D_MODEL, 8)
        .with_n_kv_heads(2)
        .with_causal(true)
        .with_dropout(0.0)
        .with_rotary(Some(RotaryConfig::new()))
        .init(&device);
    println!("{dense}\n");
    let tokens = Tensor::<3>::random([1, TOKENS, D_MODEL], Distribution::Normal(0.0, 1.0), &device);
    let expected = dense.forward(tokens.clone());

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["projections", "bits/weight", "bytes", "relative error of the output", "decoded ÷ full pass"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for bits in [4.0, 3.0, 2.0] {
        let attention = dense.compress(&CodecSpec::new("trellis", bits), 0)?;
        let found = attention.forward(tokens.clone());
        let decoded = decode(&attention, &tokens);
        table.add_row([
            format!("trellis, {bits} bits"),
            format!("{:.3}", attention.bits_per_weight()),
            attention.stored_bytes().to_string(),
            format!("{:.4}", distance(&found, &expected)?),
            format!("{:.1e}", distance(&decoded, &found)?),
        ]);
    }
    println!("{table}");
    println!("The last column is the distance of the output with a cache, token by token, from that of one pass.");
    Ok(())
}

/// The outputs of the tokens, fed one at a time.
fn decode(attention: &PIXELAttention, tokens: &Tensor<3>) -> Tensor<3> {
    let mut cache = KeyValueCache::new();
    let step = |t: usize| attention.forward_cached(tokens.clone().slice([0..1, t..t + 1]), &mut cache);
    Tensor::cat((0..TOKENS).map(step).collect(), 1)
}

/// `‖found − expected‖ / ‖expected‖`.
fn distance(found: &Tensor<3>, expected: &Tensor<3>) -> Result<f32> {
    let power = |tensor: Tensor<3>| tensor.powf_scalar(2.0).sum().try_into_scalar::<f32>();
    let error = power(found.clone() - expected.clone()).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let whole = power(expected.clone()).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok((error / whole).sqrt())
}
