//! `pixel decompress`.

use super::run_args::RunArgs;
use crate::output;
use crate::progress::Bar;
use anyhow::Result;
use pixel_core::archive::{Archive, FloatType};
use pixel_core::compressor::decompress_archive;
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
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let archive = Archive::open(&self.input)?;
        if !self.run.quiet {
            output::remarks(archive.checkpoint());
        }
        let packed = archive.entries().values().map(|entry| entry.header().shape.num_weights() as u64);
        let kept = archive.kept().keys().filter_map(|name| archive.checkpoint().tensors().get(name));
        let weights = packed.sum::<u64>() + kept.map(|info| info.shape.iter().product::<usize>() as u64).sum::<u64>();
        let bar = Bar::new(weights, !self.run.prints_text())?;
        let bytes = decompress_archive(&archive, &self.output, self.dtype, self.run.options(), &bar)?;
        bar.finish();
        let tensors = archive.entries().len() + archive.kept().len();
        if self.run.json {
            println!("{:#}", serde_json::json!({ "tensors": tensors, "weights": weights, "bytes": bytes }));
        } else if self.run.prints_text() {
            println!(
                "wrote {tensors} tensors, {weights} weights, {} to {}",
                output::bytes(bytes),
                self.output.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
