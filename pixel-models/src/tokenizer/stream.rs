//! Tokens to text, one by one.

use super::{TextTokenizer, text_error};
use crate::error::ModelError;

/// Turns tokens into text as they come.
///
/// A piece is whole characters: bytes of one that is not complete wait for the tokens to come. The pieces and what
/// [`finish`](Self::finish) returns are together what [`TextTokenizer::decode`] makes of all the tokens, for decoders
/// that look no further back than one piece (byte level, byte fallback, WordPiece, Metaspace, BPE suffixes).
#[derive(Debug, Clone)]
pub struct StreamDecoder<'a> {
    tokenizer: &'a TextTokenizer,
    /// The tokens of the last piece, then those that wait. The former say whether a word begins with a space.
    tokens: Vec<u32>,
    /// How many tokens the last piece has.
    context: usize,
    /// The text of those alone.
    context_text: String,
}

impl<'a> StreamDecoder<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, tokens: Vec::new(), context: 0, context_text: String::new() }
    }

    /// The text that is complete with this token; empty while a character is not.
    ///
    /// # Errors
    /// As [`TextTokenizer::decode`]; [`ModelError::Text`] too if the tokenizer's decoder changes text that has been
    /// given out.
    pub fn push(&mut self, token: u32) -> Result<String, ModelError> {
        if !self.tokenizer.is_text(token) {
            return Ok(String::new());
        }
        self.tokens.push(token);
        // Which of its bytes are characters is known at the end of a run, and a run shows its end by what follows.
        if self.tokenizer.is_byte(token) {
            return Ok(String::new());
        }
        let text = self.waiting()?;
        if text.is_empty() || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.tokens.drain(..self.context);
        self.context = self.tokens.len();
        self.context_text = self.tokenizer.decode(&self.tokens)?;
        Ok(text)
    }

    /// The text of what waits: `�` where bytes of a character are missing.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(self) -> Result<String, ModelError> {
        self.waiting()
    }

    fn waiting(&self) -> Result<String, ModelError> {
        let text = self.tokenizer.decode(&self.tokens)?;
        let Some(waiting) = text.strip_prefix(&self.context_text) else {
            return Err(text_error(format!("the decoder turned {:?} into {text:?}", self.context_text)));
        };
        Ok(waiting.into())
    }
}
