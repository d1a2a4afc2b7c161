//! Text to tokens and back.

use crate::error::ModelError;
use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use tokenizers::{PostProcessor, Tokenizer, TruncationDirection};

/// Files next to the tokenizer that name its special tokens as text, in the order in which they are read.
const TOKEN_NAMES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
/// Files next to the tokenizer that give the numbers of special tokens.
const TOKEN_NUMBERS: [&str; 2] = ["generation_config.json", "config.json"];

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
    eos: Option<u32>,
    added_bos: Option<u32>,
}

impl TextTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// The tokens that begin and end a text are those that `tokenizer_config.json` or `special_tokens_map.json` next to
    /// it name, or else those whose numbers stand in `generation_config.json` or `config.json`. None of these files has
    /// to be there.
    ///
    /// # Errors
    /// [`ModelError::Io`] for a file that cannot be read, [`ModelError::Tokenizer`] for one that is not what it should
    /// be.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|source| ModelError::Io { path: path.into(), source })?;
        let invalid = |message: String| ModelError::Tokenizer { path: path.into(), message };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        tokenizer.with_padding(None);
        let side_files = SideFiles::read(path)?;
        let bos = side_files.token(&tokenizer, "bos_token");
        let eos = side_files.token(&tokenizer, "eos_token");
        let mut read = Self { tokenizer, bos, eos, added_bos: None };
        read.added_bos = read.encode("")?.first().copied().filter(|first| Some(*first) == bos);
        Ok(read)
    }

    /// The tokens of a text, with the special tokens that the tokenizer puts around it.
    ///
    /// # Errors
    /// [`ModelError::Text`] where the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_with(text, true)
    }

    /// The tokens of a text, with nothing around it. A special token that is spelled out in the text counts as that
    /// token.
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
        StreamDecoder { tokenizer: self, tokens: Vec::new(), context: 0, context_text: String::new() }
    }

    /// The token that begins a text, if the model has one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text, if the model has one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// [`bos_id`](Self::bos_id), if [`encode`](Self::encode) puts it first.
    pub fn added_bos(&self) -> Option<u32> {
        self.added_bos
    }

    /// The number of tokens, added ones among them. A model may have more rows than this.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
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

impl StreamDecoder<'_> {
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

/// The files next to a tokenizer that name its special tokens.
struct SideFiles {
    names: Vec<Value>,
    numbers: Vec<Value>,
}

impl SideFiles {
    fn read(path: &Path) -> Result<Self, ModelError> {
        let read = |name: &&str| read_json(&path.with_file_name(name)).transpose();
        Ok(Self {
            names: TOKEN_NAMES.iter().filter_map(read).collect::<Result<_, _>>()?,
            numbers: TOKEN_NUMBERS.iter().filter_map(read).collect::<Result<_, _>>()?,
        })
    }

    /// The token of a field such as `bos_token`, of which the numbers are in `bos_token_id`.
    fn token(&self, tokenizer: &Tokenizer, field: &str) -> Option<u32> {
        let by_name = self.names.iter().find_map(|file| tokenizer.token_to_id(token_text(file.get(field)?)?));
        let number = format!("{field}_id");
        by_name.or_else(|| self.numbers.iter().find_map(|file| token_number(file.get(&number)?)))
    }
}

/// A token is written as its text, or as an object that has the text.
fn token_text(token: &Value) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
}

/// One number, or a list of which the first is the tokenizer's own.
fn token_number(token: &Value) -> Option<u32> {
    token.get(0).unwrap_or(token).as_u64()?.try_into().ok()
}

/// The contents of a file, if it is there.
fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ModelError::Io { path: path.into(), source }),
    };
    let invalid = |error: serde_json::Error| ModelError::Tokenizer { path: path.into(), message: error.to_string() };
    serde_json::from_slice(&bytes).map(Some).map_err(invalid)
}

fn text_error(error: impl ToString) -> ModelError {
    ModelError::Text { message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Map, json};
    use tempfile::TempDir;

    /// A tokenizer from the contents of files.
    fn tokenizer(files: &[(&str, Value)]) -> Result<TextTokenizer, ModelError> {
        let folder = TempDir::new().unwrap();
        for (name, contents) in files {
            fs::write(folder.path().join(name), contents.to_string()).unwrap();
        }
        TextTokenizer::from_file(folder.path().join("tokenizer.json"))
    }

    fn special(id: u32, content: &str) -> Value {
        json!({"id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    }

    /// Puts `first` before a text.
    fn template(first: &str, id: u32) -> Value {
        json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}}})
    }

    /// GPT-2's spelling of a byte: printable characters stand for themselves, the others for those from 256 on.
    fn byte_characters() -> Vec<char> {
        let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut others = 256..;
        (0..256u32)
            .map(|byte| if printable(&byte) { byte } else { others.next().unwrap() })
            .map(|code| char::from_u32(code).unwrap())
            .collect()
    }

    /// Tokens 0 to 255 are the bytes, 256 is `<s>`, 257 is `</s>`.
    fn byte_level() -> Value {
        let vocab = byte_characters().into_iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id)));
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
            "added_tokens": [special(256, "<s>"), special(257, "</s>")],
            "pre_tokenizer": level, "post_processor": template("<s>", 256), "decoder": level,
            "model": {"type": "BPE", "vocab": vocab.collect::<Map<_, _>>(), "merges": []}})
    }

    /// SentencePiece's layout: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3 to 258 the bytes, then pieces with `▁` for a space.
    fn byte_fallback() -> Value {
        let names = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
        let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
        let pieces = ["▁", "a", "▁a", "é", "b", "▁b"].map(String::from);
        let vocab = names.chain(bytes).chain(pieces).zip(0..).map(|(name, id)| (name, json!(id)));
        let space = json!({"String": "▁"});
        json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": space, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "vocab": vocab.collect::<Map<_, _>>(), "merges": [["▁", "a"], ["▁", "b"]],
                "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true}})
    }

    /// BERT's layout, with the truncation and the padding that MiniLM's file has.
    fn word_piece() -> Value {
        let words = ["[PAD]", "[UNK]", "[CLS]", "the", "cat", "##s", "##ing", ".", "!", "it", "'", "s"];
        let vocab = words.into_iter().zip(0..).map(|(word, id)| (word.to_string(), json!(id)));
        json!({"version": "1.0",
            "truncation": {"max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {"strategy": {"Fixed": 4}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]")],
            "normalizer": null, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": template("[CLS]", 2),
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100, "vocab": vocab.collect::<Map<_, _>>()}})
    }

    /// What the pieces of a stream are together, and how often there was one.
    fn streamed(tokenizer: &TextTokenizer, tokens: &[u32]) -> (String, usize) {
        let mut stream = tokenizer.stream();
        let mut pieces = tokens.iter().map(|token| stream.push(*token).unwrap()).collect::<Vec<_>>();
        pieces.push(stream.finish().unwrap());
        (pieces.concat(), pieces.iter().filter(|piece| !piece.is_empty()).count())
    }

    #[test]
    fn a_text_comes_back_with_and_without_its_special_tokens() {
        let tokenizer = tokenizer(&[("tokenizer.json", byte_level())]).unwrap();
        let bytes = "né!".bytes().map(u32::from).collect::<Vec<_>>();
        assert_eq!(tokenizer.encode_plain("né!").unwrap(), bytes);
        let with_bos = tokenizer.encode("né!").unwrap();
        assert_eq!(with_bos, [&[256], bytes.as_slice()].concat());
        assert_eq!(tokenizer.decode(&with_bos).unwrap(), "né!");
        assert_eq!(tokenizer.decode(&[u32::MAX]).unwrap(), "");
        assert_eq!(tokenizer.vocab_size(), 258);
    }

    #[test]
    fn special_tokens_are_read_from_the_files_beside_the_tokenizer() {
        let names = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}});
        let numbers = json!({"bos_token_id": 5, "eos_token_id": [6, 7]});
        let ids = |files: &[(&str, Value)]| {
            let tokenizer = tokenizer(&[&[("tokenizer.json", byte_level())], files].concat()).unwrap();
            (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.added_bos())
        };
        assert_eq!(ids(&[]), (None, None, None));
        let config = ("tokenizer_config.json", names.clone());
        assert_eq!(ids(std::slice::from_ref(&config)), (Some(256), Some(257), Some(256)));
        assert_eq!(ids(&[("special_tokens_map.json", names)]), (Some(256), Some(257), Some(256)));
        assert_eq!(ids(&[("config.json", numbers.clone())]), (Some(5), Some(6), None));
        assert_eq!(ids(&[("config.json", numbers), config]), (Some(256), Some(257), Some(256)));
        assert_eq!(ids(&[("tokenizer_config.json", json!({"bos_token": null, "eos_token": "absent"}))]).0, None);
    }

    #[test]
    fn truncation_and_padding_of_the_file_are_off() {
        let tokenizer = tokenizer(&[("tokenizer.json", word_piece())]).unwrap();
        assert_eq!(tokenizer.encode("the cats the cats .").unwrap(), [2, 3, 4, 5, 3, 4, 5, 7]);
        assert_eq!(tokenizer.encode("the").unwrap(), [2, 3]);
    }

    #[test]
    fn a_long_text_keeps_what_stands_around_it() {
        let tokenizer = tokenizer(&[("tokenizer.json", word_piece())]).unwrap();
        let text = "the cats the cats .";
        let whole = tokenizer.encode(text).unwrap();
        let around = whole.len() - tokenizer.encode_plain(text).unwrap().len();
        assert_eq!(tokenizer.encode_to(text, 100).unwrap(), whole);
        for limit in around..whole.len() {
            let cut = tokenizer.encode_to(text, limit).unwrap();
            assert_eq!(cut.len(), limit);
            // This tokenizer puts its one token in front.
            assert_eq!(cut, whole[..limit]);
        }
    }

    #[test]
    fn a_stream_waits_for_a_whole_character() {
        let tokenizer = tokenizer(&[("tokenizer.json", byte_level())]).unwrap();
        let mut stream = tokenizer.stream();
        let mut push = |byte: u32| stream.push(byte).unwrap();
        assert_eq!(push(0x61), "a");
        assert_eq!([push(0xE2), push(0x82), push(0xAC)], ["", "", "€"]);
        assert_eq!([push(256), push(0xE2), push(0x20)], ["", "", "\u{FFFD} "]);
        assert_eq!(push(0xF0), "");
        assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
    }

    #[test]
    fn a_stream_waits_for_the_end_of_a_run_of_bytes() {
        let tokenizer = tokenizer(&[("tokenizer.json", byte_fallback())]).unwrap();
        let (a, byte) = (261, |byte: u32| 3 + byte);
        let mut stream = tokenizer.stream();
        // A newline is a byte in this vocabulary, and the byte after it spoils the run.
        let pieces = [a, byte(0x0A), byte(0xE2), a].map(|token| stream.push(token).unwrap());
        assert_eq!(pieces, ["a", "", "", "\u{FFFD}\u{FFFD} a"]);
        assert_eq!(stream.finish().unwrap(), "");
    }

    proptest! {
        #[test]
        fn the_pieces_of_a_text_are_the_text(text in "[ a-bé€😀\n]{0,40}") {
            for layout in [byte_level(), byte_fallback()] {
                let tokenizer = tokenizer(&[("tokenizer.json", layout)]).unwrap();
                let tokens = tokenizer.encode(&text).unwrap();
                let (pieces, count) = streamed(&tokenizer, &tokens);
                prop_assert_eq!(&pieces, &text);
                prop_assert!(count <= text.chars().count());
            }
        }

        #[test]
        fn the_pieces_of_any_tokens_are_what_decoding_all_gives(
            bytes in prop::collection::vec(prop_oneof![0u32..260, 0xE0u32..0xF8, 0x80u32..0x88], 0..30),
            pieces in prop::collection::vec(prop_oneof![0u32..265, 257u32..265, 131u32..135], 0..30),
            words in prop::collection::vec(0u32..13, 0..30),
        ) {
            for (layout, tokens) in [(byte_level(), bytes), (byte_fallback(), pieces), (word_piece(), words)] {
                let tokenizer = tokenizer(&[("tokenizer.json", layout)]).unwrap();
                prop_assert_eq!(streamed(&tokenizer, &tokens).0, tokenizer.decode(&tokens).unwrap());
            }
        }
    }

    #[test]
    fn a_file_that_is_missing_or_broken_is_refused() {
        let missing = TextTokenizer::from_file("absent/tokenizer.json");
        assert!(matches!(missing, Err(ModelError::Io { .. })));
        let broken = tokenizer(&[("tokenizer.json", json!({"version": "1.0"}))]);
        assert!(matches!(broken, Err(ModelError::Tokenizer { path, .. }) if path.ends_with("tokenizer.json")));
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("tokenizer.json"), byte_level().to_string()).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), "{").unwrap();
        let broken = TextTokenizer::from_file(folder.path().join("tokenizer.json"));
        assert!(matches!(broken, Err(ModelError::Tokenizer { path, .. }) if path.ends_with("tokenizer_config.json")));
    }
}
