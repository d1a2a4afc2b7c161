//! The peak memory of compressing a checkpoint beyond the mapped input, next to what the plan said.
//!
//! `cargo run --release -p pixel-bench --bin peak_memory` makes a checkpoint, compresses it with one worker and with
//! two, and prints peak heap over the largest tensor. A given checkpoint is taken instead.

use anyhow::{Context, Result};
use clap::Parser;
use peak_alloc::PeakAlloc;
use pixel_bench::gaussian;
use pixel_core::archive::Checkpoint;
use pixel_core::compressor::{RunOptions, compress_checkpoint};
use pixel_core::plan::{Plan, Recipe};
use safetensors::tensor::{Dtype, TensorView};
use std::path::{Path, PathBuf};

#[global_allocator]
static PEAK: PeakAlloc = PeakAlloc;

/// Measures the peak heap while a checkpoint is compressed
#[derive(Debug, Parser)]
struct Args {
    /// A checkpoint; one of 8 tensors of 2048 × 4096 F32 weights is made if none is given
    checkpoint: Option<PathBuf>,
    /// The codec of layers
    #[arg(long, default_value = "trellis")]
    codec: String,
    /// Bits per weight of layers
    #[arg(long, default_value_t = 2.0)]
    bits: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let input = match args.checkpoint {
        Some(path) => path,
        None => make_checkpoint(&dir.path().join("made.safetensors"))?,
    };
    let mut recipe = Recipe::default();
    recipe.layers.codec = Some(args.codec);
    recipe.layers.bits = Some(args.bits);
    if recipe.layers.codec.as_deref() == Some("trellis") {
        // The window changes the time, and the memory by a few megabytes at most.
        recipe.layers.options = Some([("window".to_owned(), 12)].into());
    }
    let checkpoint = Checkpoint::open(&input)?;
    let plan = Plan::new(&checkpoint, &recipe.compile()?)?;
    let largest = plan.items().iter().map(|item| item.source_bytes).max().context("no tensors")?;
    println!("largest tensor: {largest} bytes");
    for threads in [1, 2] {
        let before = PEAK.current_usage();
        PEAK.reset_peak_usage();
        let output = dir.path().join(format!("out-{threads}"));
        compress_checkpoint(&checkpoint, &plan, &output, RunOptions { threads, overwrite: false }, &())?;
        let peak = PEAK.peak_usage() - before;
        let bound = 4 * largest as usize * threads + 100_000_000;
        let (planned, verdict) = (plan.peak_memory(threads), if peak <= bound { "within" } else { "EXCEEDED" });
        println!(
            "{threads} worker(s): peak heap {peak} bytes = {:.2} × the largest tensor per worker; planned {planned}; \
             4 × + 100 MB = {bound}: {verdict}",
            peak as f64 / largest as f64 / threads as f64,
        );
    }
    Ok(())
}

/// A checkpoint of eight Gaussian matrices.
fn make_checkpoint(path: &Path) -> Result<PathBuf> {
    let weight = gaussian(2048, 4096, 1);
    let bytes: Vec<u8> = weight.as_slice().iter().flat_map(|w| w.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![2048, 4096], &bytes)?;
    let tensors = (0..8).map(|i| (format!("layers.{i}.weight"), &view));
    safetensors::serialize_to_file(tensors, None, path)?;
    Ok(path.to_owned())
}
