//! The command line of an example: `[--backend NAME] [--verbose]`.

use anyhow::{Context, Result, bail};

use crate::backend::NAMES;

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Where tensors live and are computed, `flex` if nothing is said.
    pub backend: String,
    /// Whether training prints its loss.
    pub verbose: bool,
}

impl Options {
    /// Reads arguments, the program's name not among them; of several backends the last counts.
    ///
    /// # Errors
    /// If an argument is unknown or `--backend` lacks its name.
    pub(crate) fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut options = Self { backend: "flex".to_owned(), verbose: false };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.split_once('=') {
                None if arg == "--verbose" => options.verbose = true,
                None if arg == "--backend" => options.backend = args.next().with_context(usage)?,
                Some(("--backend", name)) => options.backend = name.to_owned(),
                _ => bail!("{}; unknown: {arg}", usage()),
            }
        }
        Ok(options)
    }
}

fn usage() -> String {
    format!("the arguments are --backend {} and --verbose", NAMES.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn a_backend_is_named_behind_a_blank_or_an_equals_sign() {
        assert_eq!(parse("--backend wgpu").unwrap().backend, "wgpu");
        assert_eq!(parse("--backend=cuda").unwrap().backend, "cuda");
    }

    #[test]
    fn nothing_said_is_flex_without_words() {
        assert_eq!(parse("").unwrap(), Options { backend: "flex".to_owned(), verbose: false });
        assert!(parse("--verbose").unwrap().verbose);
    }

    #[test]
    fn anything_else_is_answered_with_the_usage() {
        for line in ["--backend", "--backends flex", "flex", "--verbose=yes"] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains("--backend flex|ndarray|wgpu|cuda|cpu"), "{line}: {error}");
        }
    }
}
