//! `pixel decompress`.

use crate::output;
use crate::progress::Bar;
use anyhow::Result;
use pixel_core::archive::{Archive, FloatType};
use pixel_core::compressor::{RunOptions, decompress_archive};
use std::path::PathBuf;
use std::process::ExitCode;

/// Turn an archive back into a dense checkpoint
///
/// The result is plain safetensors that any tool loads. Stored hashes are checked on the way.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The checkpoint: a directory, or a file if it ends in .safetensors
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Type of every float tensor: f32, f16, bf16 or f64; as in the source if absent
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Workers, each with one tensor at a time; 0 for one a processor
    #[arg(long, short, default_value_t = 0)]
    threads: usize,
    /// Replace OUT if it exists
    #[arg(long)]
    overwrite: bool,
    /// Print a JSON report instead of text
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let archive = Archive::open(&self.input)?;
        let packed = archive.entries().values().map(|entry| entry.manifest().shape.num_weights() as u64);
        let kept = archive.kept().keys().filter_map(|name| archive.checkpoint().tensors().get(name));
        let weights = packed.sum::<u64>() + kept.map(|info| info.shape.iter().product::<usize>() as u64).sum::<u64>();
        let bar = Bar::new(weights, self.quiet || self.json)?;
        let options = RunOptions { threads: self.threads, overwrite: self.overwrite };
        let bytes = decompress_archive(&archive, &self.output, self.dtype, options, &bar)?;
        bar.finish();
        let tensors = archive.entries().len() + archive.kept().len();
        if self.json {
            println!("{:#}", serde_json::json!({ "tensors": tensors, "weights": weights, "bytes": bytes }));
        } else if !self.quiet {
            println!(
                "wrote {tensors} tensors, {weights} weights, {} to {}",
                output::bytes(bytes),
                self.output.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
