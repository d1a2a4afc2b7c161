//! What the tests of the commands that run a model share: the binary, and models of two layers with a tokenizer.

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Tokens of both models.
pub(crate) const VOCABULARY: usize = 48;

/// Runs the binary in `dir`.
pub(crate) fn pixel(dir: &Path, args: &[&str]) -> Assert {
    Command::cargo_bin("pixel").unwrap().current_dir(dir).args(args).assert()
}

/// What a run that succeeds prints.
pub(crate) fn stdout(assert: Assert) -> String {
    String::from_utf8(assert.success().get_output().stdout.clone()).unwrap()
}

/// The report of a run.
pub(crate) fn json_of(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&stdout(pixel(dir, &[args, &["--json"]].concat()))).unwrap()
}

/// A tokenizer of the words `w0` to `wN`, for which any other word is `w0`.
pub(crate) fn words(count: usize) -> String {
    let vocab = (0..count).map(|id| (format!("w{id}"), json!(id))).collect::<Map<_, _>>();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    });
    tokenizer.to_string()
}

/// That tokenizer with a special token in the place of the last word, which ends a word wherever it stands.
#[allow(dead_code, reason = "not every file of tests has special tokens")]
pub(crate) fn with_special(content: &str) -> String {
    let mut tokenizer: Value = serde_json::from_str(&words(VOCABULARY - 1)).unwrap();
    let id = VOCABULARY - 1;
    tokenizer["model"]["vocab"][content] = json!(id);
    tokenizer["added_tokens"] = json!([{ "id": id, "content": content, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false }]);
    tokenizer.to_string()
}

/// Copies a small model of the library's tests, and gives it a tokenizer.
pub(crate) fn add(dir: &TempDir, model: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model);
    let folder = dir.path().join(model);
    fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(source.join(file), folder.join(file)).unwrap();
    }
    fs::write(folder.join("tokenizer.json"), words(VOCABULARY)).unwrap();
    folder
}

/// A number of a report.
#[allow(dead_code, reason = "not every file of tests measures")]
pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}
