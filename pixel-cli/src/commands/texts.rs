//! The texts that a model is evaluated or calibrated on.

use anyhow::{Context, Result};
use pixel_core::archive::blake3_hex;
use pixel_models::ModelError;
use pixel_models::tokenizer::{TextTokenizer, check_tokens};
use std::path::Path;

/// Tokens of a chunk, unless --context says otherwise: what llama.cpp's tools take.
const CONTEXT: usize = 512;

/// How texts are read.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct TextArgs {
    /// Read special tokens that a text spells out, such as <|im_end|>, as these tokens, and not as the characters they
    /// are written with
    #[arg(long)]
    special_tokens: bool,
}

impl TextArgs {
    /// The tokenizer that reads special tokens in texts as asked for.
    pub(crate) fn tokenizer(self, tokenizer: &TextTokenizer) -> TextTokenizer {
        if self.special_tokens { tokenizer.clone() } else { tokenizer.literal() }
    }
}

/// A text file.
pub(crate) struct Text {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) blake3: String,
}

impl Text {
    /// Reads a file of UTF-8; a byte order mark at its beginning is no part of the text.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let blake3 = blake3_hex(&bytes);
        let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
        let text = text.strip_prefix('\u{FEFF}').map(str::to_owned).unwrap_or(text);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, text, blake3 })
    }

    /// The lines with something on them.
    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.trim().is_empty())
    }
}

/// A tokenizer, and the number of tokens that its model has.
pub(crate) struct Vocabulary {
    pub(crate) tokenizer: TextTokenizer,
    pub(crate) rows: usize,
}

impl Vocabulary {
    /// The tokens, of which the model has each one.
    pub(crate) fn check(&self, tokens: Result<Vec<u32>, ModelError>) -> Result<Vec<u32>> {
        let tokens = tokens?;
        check_tokens(Some(&self.tokenizer), tokens.iter().chain(&self.tokenizer.added_bos()), self.rows)?;
        Ok(tokens)
    }
}

/// Tokens of a chunk: those asked for, or what the model at `path` was made for, 512 at most; and what is to be said if
/// it was made for fewer than asked for.
pub(crate) fn context(asked: Option<usize>, max_positions: usize, path: &Path) -> (usize, Option<String>) {
    let notice = asked.filter(|asked| *asked > max_positions).map(|asked| {
        let path = path.display();
        format!("note: --context {asked}: {path} was made for texts of {max_positions} tokens, which are taken")
    });
    (asked.unwrap_or(CONTEXT).min(max_positions), notice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_is_what_the_model_has_and_a_cut_is_said() {
        let of = |asked, most| context(asked, most, Path::new("m"));
        assert_eq!(of(None, 8192), (512, None));
        assert_eq!(of(None, 64), (64, None));
        assert_eq!(of(Some(64), 64), (64, None));
        let notice = "note: --context 65: m was made for texts of 64 tokens, which are taken";
        assert_eq!(of(Some(65), 64), (64, Some(notice.into())));
    }
}
