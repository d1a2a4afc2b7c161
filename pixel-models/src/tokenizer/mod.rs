//! Text to tokens and back.

mod special;
mod stream;

pub use stream::StreamDecoder;

use crate::error::ModelError;
use special::SideFiles;
use std::fs;
use std::path::Path;
use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

/// The tokenizer of a model, as its `tokenizer.json` describes it.
///
/// Truncation and padding that the file asks for are off: a text has all of its tokens and no others.
///
/// # Example
/// ```no_run
/// use pixel_models::tokenizer::TextTokenizer;
///
/// let tokenizer = TextTokenizer::from_file("models/SmolLM2-135M/tokenizer.json")?;
/// let tokens = tokenizer.encode("Once upon a time")?;
/// let mut stream = tokenizer.stream();
/// for token in tokens {
///     print!("{}", stream.push(token)?);
/// }
/// print!("{}", stream.finish()?);
/// # Ok::<(), pixel_models::ModelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    bos: Option<u32>,
    ends: Vec<u32>,
    added_bos: Option<u32>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// The token that begins a text is the one that `tokenizer_config.json` or `special_tokens_map.json` next to it
    /// names, or else the one whose number stands in `generation_config.json` or `config.json`. A text ends at the
    /// token that the first two name, and at each one of which the other two have the number (`eos_token_id`, a number
    /// or a list). None of these files has to be there.
    ///
    /// # Errors
    /// [`ModelError::Io`] for a file that cannot be read; [`ModelError::Tokenizer`], [`ModelError::Json`] and
    /// [`ModelError::Config`] for one that is not what it should be.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| ModelError::Io { path: path.into(), source })?;
        let invalid = |message: String| ModelError::Tokenizer { path: path.into(), message };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);
        let side_files = SideFiles::read(path)?;
        let bos = side_files.token(&tokenizer, "bos_token")?;
        let ends = side_files.ends(&tokenizer)?;
        let mut read = Self { tokenizer, bos, ends, added_bos: None };
        read.added_bos = read.encode("")?.first().copied().filter(|first| Some(*first) == bos);
        Ok(read)
    }

    /// This tokenizer for texts that are text and nothing else: special tokens that are spelled out in them are read as
    /// the characters that they are written with. What [`encode`](Self::encode) puts around a text stays.
    pub fn literal(&self) -> Self {
        let mut literal = self.clone();
        literal.tokenizer.set_encode_special_tokens(true);
        literal
    }

    /// The tokens of a text, with the special tokens that the tokenizer puts around it. A special token that is spelled
    /// out in the text counts as that token, unless the tokenizer is [`literal`](Self::literal).
    ///
    /// # Errors
    /// [`ModelError::Text`] where the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_with(text, true)
    }

    /// The tokens of a text, with nothing around it. A special token that is spelled out in the text counts as that
    /// token, unless the tokenizer is [`literal`](Self::literal).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_with(text, false)
    }

    /// [`encode`](Self::encode), with the end of the text left out if it would have more than `limit` tokens; what the
    /// tokenizer puts around it stays.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_to(&self, text: &str, limit: usize) -> Result<Vec<u32>, ModelError> {
        let around = self.tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
        let mut encoding = self.tokenizer.encode_fast(text, false).map_err(text_error)?;
        encoding.truncate(limit.saturating_sub(around), 0, TruncationDirection::Right);
        let encoding = self.tokenizer.post_process(encoding, None, true).map_err(text_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        let encoding = self.tokenizer.encode_fast(text, special).map_err(text_error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens. Special tokens and numbers that no token has give none; bytes that are no character give
    /// `�`.
    ///
    /// # Errors
    /// [`ModelError::Text`] where the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, ModelError> {
        self.tokenizer.decode(tokens, true).map_err(text_error)
    }

    /// A decoder that takes the tokens one by one.
    pub fn stream(&self) -> StreamDecoder<'_> {
        StreamDecoder::new(self)
    }

    /// The token that begins a text, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if the model has one: the first of [`end_ids`](Self::end_ids).
    pub fn eos_id(&self) -> Option<u32> {
        self.ends.first().copied()
    }

    /// The tokens that end a text, each once, the tokenizer's own first. Models that converse have several: one ends
    /// an answer, another a text.
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// [`bos_id`](Self::bos_id), if [`encode`](Self::encode) puts it first.
    pub fn added_bos(&self) -> Option<u32> {
        self.added_bos
    }

    /// The number of tokens, added ones among them. A model may have more rows than this.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The text of one token by itself, special ones included; `None` for a number that no token has.
    pub fn text_of(&self, token: u32) -> Option<String> {
        let name = self.tokenizer.id_to_token(token)?;
        let text = self.tokenizer.decode(&[token], false).ok().filter(|text| !text.is_empty());
        Some(text.unwrap_or(name))
    }

    /// How the vocabulary spells a token.
    pub(crate) fn name_of(&self, token: u32) -> Option<String> {
        self.tokenizer.id_to_token(token)
    }

    /// The texts of the special tokens.
    pub(crate) fn special_tokens(&self) -> Vec<String> {
        let added = self.tokenizer.get_added_tokens_decoder();
        added.into_values().filter(|token| token.special).map(|token| token.content).collect()
    }

    /// What it is made of.
    pub(crate) fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether the token has a text: it exists and is not special.
    fn is_text(&self, token: u32) -> bool {
        let added = self.tokenizer.get_added_vocabulary();
        self.tokenizer.id_to_token(token).is_some_and(|name| !added.is_special_token(&name))
    }

    /// Whether the token is a byte of SentencePiece's fallback, `<0x41>`, which is a character only with its
    /// neighbours.
    fn is_byte(&self, token: u32) -> bool {
        let is_hex = |digits: &str| digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let name = self.tokenizer.id_to_token(token);
        name.is_some_and(|name| name.strip_prefix("<0x").and_then(|name| name.strip_suffix('>')).is_some_and(is_hex))
    }
}

/// Refuses tokens that an embedding of so many rows has none for: a tokenizer may know more tokens than its model,
/// where some were added to it and the model was not resized. `tokenizer` gives the error the token's text.
///
/// # Errors
/// [`ModelError::UnknownToken`] for the first of them.
pub fn check_tokens<'a>(
    tokenizer: Option<&TextTokenizer>,
    tokens: impl IntoIterator<Item = &'a u32>,
    rows: usize,
) -> Result<(), ModelError> {
    match tokens.into_iter().copied().find(|token| *token as usize >= rows) {
        Some(token) => {
            let text = tokenizer.and_then(|tokenizer| tokenizer.text_of(token));
            Err(ModelError::UnknownToken { token, text, rows })
        }
        None => Ok(()),
    }
}

fn text_error(error: impl ToString) -> ModelError {
    ModelError::Text { message: error.to_string() }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
