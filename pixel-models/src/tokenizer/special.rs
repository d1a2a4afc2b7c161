//! The tokens that begin and end a text, as the files next to a tokenizer name them.

use crate::error::ModelError;
use crate::json;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// Files next to the tokenizer that name its special tokens as text, in the order in which they are read.
const TOKEN_NAMES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
/// Files next to the tokenizer that give the numbers of special tokens.
const TOKEN_NUMBERS: [&str; 2] = ["generation_config.json", "config.json"];

/// The files next to a tokenizer that name its special tokens.
pub(super) struct SideFiles {
    names: Vec<Value>,
    numbers: Vec<(PathBuf, Value)>,
}

impl SideFiles {
    pub(super) fn read(tokenizer: &Path) -> Result<Self, ModelError> {
        let read = |name: &&str| {
            let path = tokenizer.with_file_name(name);
            json::read_if_there(&path).map(|value| value.map(|value| (path, value))).transpose()
        };
        let names = TOKEN_NAMES.iter().filter_map(read).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            names: names.into_iter().map(|(_, value)| value).collect(),
            numbers: TOKEN_NUMBERS.iter().filter_map(read).collect::<Result<_, _>>()?,
        })
    }

    /// The token of a field such as `bos_token`, of which the numbers are in `bos_token_id`.
    pub(super) fn token(&self, tokenizer: &Tokenizer, field: &str) -> Result<Option<u32>, ModelError> {
        let by_name = self.names.iter().find_map(|file| tokenizer.token_to_id(token_text(file.get(field)?)?));
        match by_name {
            Some(token) => Ok(Some(token)),
            None => Ok(self.numbers(field)?.first().copied()),
        }
    }

    /// The tokens that end a text, each once: the tokenizer's own, then all that `generation_config.json` and
    /// `config.json` have the numbers of. Models that converse have one more than models that go on with a text.
    pub(super) fn ends(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>, ModelError> {
        let mut ends = Vec::new();
        for token in self.token(tokenizer, "eos_token")?.into_iter().chain(self.numbers("eos_token")?) {
            if !ends.contains(&token) {
                ends.push(token);
            }
        }
        Ok(ends)
    }

    /// The numbers in all files of the field, in their order.
    fn numbers(&self, field: &str) -> Result<Vec<u32>, ModelError> {
        let field = format!("{field}_id");
        let mut tokens = Vec::new();
        for (path, file) in &self.numbers {
            let Some(value) = file.get(&field) else { continue };
            let wrong = || ModelError::Config {
                path: path.clone(),
                field: field.clone(),
                value: value.to_string(),
                reason: "it must be a token's number or a list of such numbers".into(),
            };
            tokens.extend(token_numbers(value).ok_or_else(wrong)?);
        }
        Ok(tokens)
    }
}

/// A token is written as its text, or as an object that has the text.
fn token_text(token: &Value) -> Option<&str> {
    token.get("content").unwrap_or(token).as_str()
}

/// One number, a list of them, or null; some files have −1 for a token that the model lacks.
fn token_numbers(value: &Value) -> Option<Vec<u32>> {
    let number = |value: &Value| match value.as_i64()? {
        ..0 => Some(None),
        number => number.try_into().ok().map(Some),
    };
    let numbers = match value {
        Value::Null => return Some(Vec::new()),
        Value::Array(values) => values.iter().map(number).collect::<Option<Vec<_>>>()?,
        value => vec![number(value)?],
    };
    Some(numbers.into_iter().flatten().collect())
}
