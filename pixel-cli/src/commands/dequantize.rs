//! `pixel dequantize`.

use super::run_args::RunArgs;
use crate::output;
use crate::progress::Bar;
use anyhow::Result;
use pixel_core::archive::{Checkpoint, FloatType, QuantisedCheckpoint};
use pixel_core::compressor::dequantize_checkpoint;
use std::path::PathBuf;
use std::process::ExitCode;

/// Make a checkpoint dense that another tool has quantised
///
/// Reads F8 with scales for tensors, rows or blocks, GPTQ, AWQ, and integers of compressed-tensors. The result is a
/// checkpoint like any other: compress, calibrate, evaluate and run it.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The quantised checkpoint
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The dense one: a directory, or a file if it ends in .safetensors
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Type of the weights that were quantised: f32 holds what they stand for exactly, bf16 and f16 take half the space
    #[arg(long, default_value = "f32")]
    dtype: FloatType,
    #[command(flatten)]
    run: RunArgs,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let checkpoint = Checkpoint::open(&self.input)?;
        if !self.run.quiet {
            output::remarks(&checkpoint);
        }
        let weights = QuantisedCheckpoint::of(&checkpoint)?.num_values();
        let bar = Bar::new(weights, !self.run.prints_text())?;
        let report = dequantize_checkpoint(&checkpoint, &self.output, self.dtype, self.run.options(), &bar)?;
        bar.finish();
        if self.run.json {
            println!(
                "{:#}",
                serde_json::json!({
                    "dequantized": report.weights,
                    "copied": report.copied,
                    "weights": weights,
                    "bytes": report.tensor_bytes,
                    "left_out": report.left_out,
                })
            );
        } else if self.run.prints_text() {
            for path in &report.left_out {
                println!("not copied    {} (of the quantisation, or weights in another form)", path.display());
            }
            println!(
                "wrote {} dequantised weights and {} other tensors, {} to {}",
                report.weights,
                report.copied,
                output::bytes(report.tensor_bytes),
                self.output.display()
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
