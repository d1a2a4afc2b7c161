//! Progress on a terminal, silence elsewhere; Ctrl-C stops at the next tensor, or at once, and leaves nothing
//! behind.

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use pixel_core::archive::remove_partial_outputs;
use pixel_core::compressor::Progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A bar over weights, with throughput and time left.
pub(crate) struct Bar {
    bar: ProgressBar,
    cancelled: Arc<AtomicBool>,
}

impl Bar {
    /// A bar for `weights` values; it draws only on a terminal and unless `quiet`.
    pub(crate) fn new(weights: u64, quiet: bool) -> Result<Self> {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(weights), target);
        let style = "{bar:32} {percent:>3} % {human_pos}/{human_len} weights, {rate}, {eta} left  {wide_msg}";
        let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // Nothing can be done about a failure to draw.
            let _ = write!(out, "{:.1} M/s", state.per_sec() / 1e6);
        };
        bar.set_style(ProgressStyle::with_template(style)?.with_key("rate", rate));
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&cancelled);
        let on_signal = move || {
            if flag.swap(true, Ordering::Relaxed) {
                // The second signal: the user does not want to wait for the tensors under way.
                stop_at_once();
            }
            eprintln!("stopping after the tensors under way; nothing will be left");
        };
        ctrlc::set_handler(on_signal).context("cannot listen for Ctrl-C")?;
        Ok(Self { bar, cancelled })
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Lets Ctrl-C end the process: for commands whose steps are too long to wait for.
#[cfg(feature = "models")]
pub(crate) fn stop_on_signal() -> Result<()> {
    ctrlc::set_handler(|| stop_at_once()).context("cannot listen for Ctrl-C")
}

fn stop_at_once() -> ! {
    remove_partial_outputs();
    eprintln!("stopped; nothing was left");
    std::process::exit(130);
}

impl Progress for Bar {
    fn tensor_done(&self, name: &str, weights: u64) {
        self.bar.set_message(name.to_owned());
        self.bar.inc(weights);
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
