//! The options of commands that write a model.

use pixel_core::compressor::RunOptions;

/// How a run is carried out and what it prints.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Workers, each with one tensor at a time; 0 for one a processor
    #[arg(long, short, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Replace OUT if it exists, provided that PIXEL wrote all of it, or that it is an empty directory
    #[arg(long)]
    overwrite: bool,
    /// Print a JSON report instead of text
    #[arg(long)]
    pub(crate) json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl RunArgs {
    /// Whether the run is described in text.
    pub(crate) fn prints_text(&self) -> bool {
        !self.quiet && !self.json
    }

    pub(crate) fn options(&self) -> RunOptions {
        RunOptions { threads: self.threads, overwrite: self.overwrite }
    }
}
