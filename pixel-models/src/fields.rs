//! The fields of a JSON file, with errors that name file, field and value.

use crate::error::ModelError;
use crate::json;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The largest size that a configuration may give: products of two stay far from the end of a word.
const MAX_SIZE: usize = 1 << 30;

/// An object of a JSON file.
#[derive(Debug)]
pub(crate) struct Fields {
    path: PathBuf,
    /// What stands before the name of a field: `rope_scaling.` in that object.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a file.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let map = serde_json::from_value(json::read(path)?)
            .map_err(|e| ModelError::Json { path: path.to_owned(), message: e.to_string() })?;
        Ok(Self { path: path.to_owned(), prefix: String::new(), map })
    }

    /// The field, or `None` if it is absent or null.
    pub(crate) fn optional<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>, ModelError> {
        match self.map.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value).map(Some).map_err(|e| self.wrong(field, &e.to_string())),
        }
    }

    /// The field.
    pub(crate) fn required<T: DeserializeOwned>(&self, field: &str) -> Result<T, ModelError> {
        self.optional(field)?.ok_or_else(|| self.missing(field))
    }

    /// The object under `field`, or `None` if it is absent or null.
    pub(crate) fn object(&self, field: &str) -> Result<Option<Self>, ModelError> {
        let map = self.optional(field)?;
        Ok(map.map(|map| Self { path: self.path.clone(), prefix: format!("{}{field}.", self.prefix), map }))
    }

    /// A size, or `None` if it is absent or null.
    pub(crate) fn optional_size(&self, field: &str) -> Result<Option<usize>, ModelError> {
        match self.optional(field)? {
            Some(size) if !(1..=MAX_SIZE).contains(&size) => {
                Err(self.wrong(field, &format!("it must be in 1..={MAX_SIZE}")))
            }
            size => Ok(size),
        }
    }

    /// A size.
    pub(crate) fn size(&self, field: &str) -> Result<usize, ModelError> {
        self.optional_size(field)?.ok_or_else(|| self.missing(field))
    }

    /// A positive number, or `None` if it is absent or null.
    pub(crate) fn optional_positive(&self, field: &str) -> Result<Option<f64>, ModelError> {
        match self.optional::<f64>(field)? {
            Some(value) if !(value > 0.0 && value.is_finite()) => Err(self.wrong(field, "it must be positive")),
            value => Ok(value),
        }
    }

    /// A positive number.
    pub(crate) fn positive(&self, field: &str) -> Result<f64, ModelError> {
        self.optional_positive(field)?.ok_or_else(|| self.missing(field))
    }

    /// Refuses the value of `field`.
    pub(crate) fn wrong(&self, field: &str, reason: &str) -> ModelError {
        ModelError::Config {
            path: self.path.clone(),
            field: self.name(field),
            value: self.text(field),
            reason: reason.into(),
        }
    }

    /// Refuses a value of `field` that means something, but is not built here; `instead` says what is.
    pub(crate) fn unsupported(&self, field: &str, instead: &str) -> ModelError {
        let what = format!("field \"{}\" = {}; {instead}", self.name(field), self.text(field));
        ModelError::Unsupported { path: self.path.clone(), what }
    }

    fn missing(&self, field: &str) -> ModelError {
        ModelError::MissingField { path: self.path.clone(), field: self.name(field) }
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn text(&self, field: &str) -> String {
        self.map.get(field).map_or_else(|| "missing".into(), Value::to_string)
    }
}
