//! Small tokenizers of every layout.

use super::TextTokenizer;
use crate::error::ModelError;
use serde_json::{Map, Value, json};
use std::fs;
use tempfile::TempDir;

/// A tokenizer from the contents of files.
pub(crate) fn tokenizer(files: &[(&str, Value)]) -> Result<TextTokenizer, ModelError> {
    let folder = TempDir::new().unwrap();
    for (name, contents) in files {
        fs::write(folder.path().join(name), contents.to_string()).unwrap();
    }
    TextTokenizer::from_file(folder.path().join("tokenizer.json"))
}

pub(crate) fn special(id: u32, content: &str) -> Value {
    json!({"id": id, "content": content, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false})
}

/// Puts `first` before a text.
pub(crate) fn template(first: &str, id: u32) -> Value {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {first: {"id": first, "ids": [id], "tokens": [first]}}})
}

/// GPT-2's spelling of a byte: printable characters stand for themselves, the others for those from 256 on.
pub(crate) fn byte_characters() -> Vec<char> {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    (0..256u32)
        .map(|byte| if printable(&byte) { byte } else { others.next().unwrap() })
        .map(|code| char::from_u32(code).unwrap())
        .collect()
}

/// Tokens 0 to 255 are the bytes, 256 is `<s>`, 257 is `</s>`.
pub(crate) fn byte_level() -> Value {
    let vocab = byte_characters().into_iter().zip(0..).map(|(c, id)| (c.to_string(), json!(id)));
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(256, "<s>"), special(257, "</s>")],
        "pre_tokenizer": level, "post_processor": template("<s>", 256), "decoder": level,
        "model": {"type": "BPE", "vocab": vocab.collect::<Map<_, _>>(), "merges": []}})
}

/// SentencePiece's layout: 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3 to 258 the bytes, then pieces with `▁` for a space.
pub(crate) fn byte_fallback() -> Value {
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
pub(crate) fn word_piece() -> Value {
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

/// A tokenizer of the words `t0` to `t47`, with files next to it.
pub(crate) fn words(files: &[(&str, Value)]) -> TextTokenizer {
    let vocab = (0..48).map(|id| (format!("t{id}"), json!(id))).collect::<Map<_, _>>();
    let words = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" },
    });
    tokenizer(&[&[("tokenizer.json", words)], files].concat()).unwrap()
}
