//! Text to standard output, as it comes.

use anyhow::{Context, Result};
use pixel_models::tokenizer::{StreamDecoder, TextTokenizer};
use std::io::{Write, stdout};

/// Writes a piece of text, for the reader to see now.
pub(super) fn print(piece: &str) -> Result<()> {
    let mut out = stdout().lock();
    out.write_all(piece.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// The text after a prompt, printed as it comes.
pub(super) struct Writer<'a> {
    stream: StreamDecoder<'a>,
    /// The end of the prompt's text, if the tokens to come decide what it is.
    waiting: String,
    text: String,
    print: bool,
}

impl<'a> Writer<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, prompt: &[u32], print: bool) -> Result<Self> {
        // Whether the first word begins with a space depends on the one before.
        let mut stream = tokenizer.stream();
        for token in prompt {
            stream.push(*token)?;
        }
        let waiting = stream.clone().finish()?;
        Ok(Self { stream, waiting, text: String::new(), print })
    }

    pub(super) fn push(&mut self, token: u32) -> Result<()> {
        let piece = self.stream.push(token)?;
        self.write(&piece)
    }

    fn write(&mut self, piece: &str) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        let piece = piece.strip_prefix(waiting.as_str()).unwrap_or(piece);
        self.text.push_str(piece);
        if self.print {
            print(piece)?;
        }
        Ok(())
    }

    /// The whole text.
    pub(super) fn finish(mut self) -> Result<String> {
        let rest = self.stream.clone().finish()?;
        self.write(&rest)?;
        Ok(self.text)
    }
}
