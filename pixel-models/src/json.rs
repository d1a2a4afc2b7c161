//! JSON as Python writes it.
//!
//! `json.dumps` writes numbers that are none as `NaN`, `Infinity` and `-Infinity`, which no standard knows, and which
//! stand in the configurations of published models. Every JSON file of a model's directory is read here.

use crate::error::ModelError;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// What Python writes for numbers that are none; the longer ones first.
const NOT_FINITE: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The contents of a file.
///
/// # Errors
/// [`ModelError::Io`], [`ModelError::Json`].
pub(crate) fn read(path: &Path) -> Result<Value, ModelError> {
    let text = std::fs::read_to_string(path).map_err(ModelError::io(path))?;
    parse(&text).map_err(|error| ModelError::Json { path: path.to_owned(), message: error.to_string() })
}

/// The contents of a file, if it is there.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_if_there(path: &Path) -> Result<Option<Value>, ModelError> {
    match read(path) {
        Err(ModelError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        value => value.map(Some),
    }
}

/// A value, in which `NaN`, `Infinity` and `-Infinity` are read as texts of that spelling: JSON has no such numbers, so
/// that a field which needs one is refused with the value named, and any other field is none of ours.
fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(text).or_else(|error| match quoted(text) {
        Some(quoted) => serde_json::from_str(&quoted),
        None => Err(error),
    })
}

/// The text with quotes around `NaN` and the like where they stand outside of strings; `None` if there are none.
fn quoted(text: &str) -> Option<String> {
    let (mut out, mut in_string, mut rest) = (String::with_capacity(text.len() + 16), false, text);
    let mut found = false;
    while let Some(next) = rest.chars().next() {
        let word = NOT_FINITE.iter().find(|word| !in_string && rest.starts_with(**word));
        let taken = match (word, next) {
            (Some(word), _) => word.len(),
            // What a backslash takes the meaning from is part of the string, quotes above all.
            (None, '\\') if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (None, next) => {
                in_string ^= next == '"';
                next.len_utf8()
            }
        };
        let (piece, after) = rest.split_at(taken);
        match word {
            Some(word) => out.extend(["\"", word, "\""]),
            None => out.push_str(piece),
        }
        found |= word.is_some();
        rest = after;
    }
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_are_none_are_read_and_strings_stay_as_they_are() {
        let text = r#"{"a": NaN, "b": [0.0, Infinity, -Infinity], "NaN": "Infinity \" NaN \\", "c": "é-Infinity"}"#;
        let expected = json!({
            "a": "NaN", "b": [0.0, "Infinity", "-Infinity"], "NaN": "Infinity \" NaN \\", "c": "é-Infinity",
        });
        assert_eq!(parse(text).unwrap(), expected);
        assert_eq!(quoted(r#"{"NaN": "\"Infinity", "d": 1}"#), None);
    }

    #[test]
    fn what_is_wrong_besides_is_told_where_it_stands() {
        for text in ["{\"a\": NaN,", "{\"a\": nan}", "{\"a\": InfinityNaN}", "\"\\", "{\"a\": Infinit}"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("{\"a\" 1}").unwrap_err().to_string().ends_with("at line 1 column 6"));
    }
}
