//! `pixel`: shrinks a checkpoint, says honestly by how much, and gets it back.
//!
//! Exit status: 0 for success, 1 if a comparison found a difference or a threshold was passed, 2 for an error.

mod commands;
mod output;
mod progress;

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

/// Compresses neural-network checkpoints: weights as indices into patterns plus scales.
#[derive(Debug, Parser)]
#[command(name = "pixel", version, propagate_version = true)]
#[command(after_help = "Exit status: 0 success, 1 a difference or an error above the threshold, 2 a failure.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "models")]
    Calibrate(commands::calibrate::Args),
    Compress(Box<commands::compress::Args>),
    Decompress(commands::decompress::Args),
    Dequantize(commands::dequantize::Args),
    Inspect(commands::inspect::Args),
    Verify(commands::verify::Args),
    Diff(commands::diff::Args),
    #[cfg(feature = "models")]
    Eval(commands::eval::Args),
    #[cfg(feature = "models")]
    Run(commands::run::Args),
    /// List the codecs with their rates and options
    Codecs,
    /// Print a shell completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    // A reader that stops early, such as `head`, is no error.
    sigpipe::reset();
    let result = match Cli::parse().command {
        #[cfg(feature = "models")]
        Command::Calibrate(args) => args.run(),
        Command::Compress(args) => args.run(),
        Command::Decompress(args) => args.run(),
        Command::Dequantize(args) => args.run(),
        Command::Inspect(args) => args.run(),
        Command::Verify(args) => args.run(),
        Command::Diff(args) => args.run(),
        #[cfg(feature = "models")]
        Command::Eval(args) => args.run(),
        #[cfg(feature = "models")]
        Command::Run(args) => args.run(),
        Command::Codecs => commands::codecs::run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "pixel", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {}", output::message(&error));
        ExitCode::from(2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
