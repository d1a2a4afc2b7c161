//! How a sentence encoder pools, as sentence-transformers writes it.

use crate::error::ModelError;
use crate::fields::Fields;
use std::path::Path;

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pooling {
    /// The mean over the tokens that are not padding. The default, and what most sentence encoders are trained for.
    #[default]
    Mean,
    /// The vector of the first token.
    First,
}

impl Pooling {
    /// Reads the `config.json` of a sentence-transformers pooling.
    ///
    /// # Errors
    /// [`ModelError`] if the file cannot be read, or asks for anything but exactly one of the mean and the first token.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let fields = Fields::open(path)?;
        let instead = "the mean over all tokens or the first token, and nothing in addition, is";
        match fields.optional::<String>("pooling_mode")?.as_deref() {
            None => {}
            Some("mean") => return Ok(Self::Mean),
            Some("cls") => return Ok(Self::First),
            Some(_) => return Err(fields.unsupported("pooling_mode", instead)),
        }
        let set = |field: &str| Ok::<_, ModelError>(fields.optional(field)?.unwrap_or(false));
        let others = ["max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"];
        for field in others.map(|name| format!("pooling_mode_{name}")) {
            if set(&field)? {
                return Err(fields.unsupported(&field, instead));
            }
        }
        match (set("pooling_mode_mean_tokens")?, set("pooling_mode_cls_token")?) {
            (true, false) => Ok(Self::Mean),
            (false, true) => Ok(Self::First),
            _ => Err(fields.unsupported("pooling_mode_mean_tokens", instead)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CONFIG_FILE;
    use serde_json::{Value, json};

    #[test]
    fn a_pooling_is_one_of_two() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(CONFIG_FILE);
        let pooling = |value: Value| {
            std::fs::write(&path, value.to_string()).unwrap();
            Pooling::from_file(&path).map_err(|error| error.to_string())
        };
        assert_eq!(pooling(json!({ "pooling_mode_mean_tokens": true })), Ok(Pooling::Mean));
        let cls = json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false });
        assert_eq!(pooling(cls), Ok(Pooling::First));
        assert_eq!(pooling(json!({ "pooling_mode": "cls" })), Ok(Pooling::First));
        let both = json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true });
        assert!(pooling(both).unwrap_err().contains("pooling_mode_mean_tokens"));
        let maximum = json!({ "pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true });
        assert!(pooling(maximum).unwrap_err().contains("\"pooling_mode_max_tokens\" = true"));
    }
}
