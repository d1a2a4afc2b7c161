//! A dictionary as JSON.

use super::error::DictionaryError;
use super::pattern::PatternId;
use super::store::{Entry, PatternDictionary};
use crate::archive::write_file;
use crate::matrix::Shape;
use crate::patterns::PatternKind;
use half::f16;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The version written and read.
const VERSION: u32 = 1;
/// Ids beyond this are refused: there is room for as many again.
const MAX_ID: u64 = 1 << 62;
/// How far a stored pattern's root mean square may lie from 1; half precision rounds to 5e-4.
const NORM_TOLERANCE: f64 = 1e-2;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    version: u32,
    max_patterns: usize,
    cache_size: usize,
    max_bytes: usize,
    next_id: u64,
    patterns: Vec<StoredPattern>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredPattern {
    id: PatternId,
    kind: PatternKind,
    shape: Shape,
    usage: u64,
    importance: f32,
    references: u64,
    layers: BTreeMap<String, u64>,
    /// Half-precision numbers with a root mean square of 1, row-major.
    values: Vec<f32>,
}

impl PatternDictionary {
    /// The dictionary with its counts and references, as JSON.
    ///
    /// # Example
    /// ```
    /// use pixel_core::{Shape, dictionary::PatternDictionary};
    /// let mut dictionary = PatternDictionary::default();
    /// let ids = dictionary.generate_base_patterns(Shape::new(2, 3)?)?;
    /// let copy = PatternDictionary::from_json(&dictionary.to_json()?)?;
    /// assert_eq!(copy.get(ids[0])?, dictionary.get(ids[0])?);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`DictionaryError::Json`].
    pub fn to_json(&self) -> Result<Vec<u8>, DictionaryError> {
        let patterns = self.entries.iter().map(|(id, entry)| StoredPattern {
            id: *id,
            kind: entry.kind,
            shape: entry.shape,
            usage: entry.usage.load(Ordering::Relaxed),
            importance: entry.importance,
            references: entry.references,
            layers: entry.layers.clone(),
            values: self.stored(*id).unwrap_or_default().iter().map(|value| value.to_f32()).collect(),
        });
        Ok(serde_json::to_vec(&State {
            version: VERSION,
            max_patterns: self.max_patterns,
            cache_size: self.cache_size,
            max_bytes: self.max_bytes,
            next_id: self.next_id,
            patterns: patterns.collect(),
        })?)
    }

    /// Reads what [`to_json`](Self::to_json) wrote.
    ///
    /// # Errors
    /// [`DictionaryError`] naming what is wrong: text that does not parse, another version, more patterns than the
    /// capacity, ids that are repeated or yet to be given, values that make no pattern.
    pub fn from_json(json: &[u8]) -> Result<Self, DictionaryError> {
        let state: State = serde_json::from_slice(json)?;
        check("version", state.version, state.version == VERSION, format!("{VERSION}"))?;
        check("next_id", state.next_id, state.next_id <= MAX_ID, format!("0..={MAX_ID}"))?;
        let count = state.patterns.len();
        check("patterns", count, count <= state.max_patterns, format!("0..={}", state.max_patterns))?;
        let mut dictionary = Self::new(state.max_patterns, state.cache_size).with_max_bytes(state.max_bytes);
        dictionary.next_id = state.next_id;
        let mut patterns = state.patterns;
        patterns.sort_by_key(|pattern| pattern.id);
        for pattern in patterns {
            dictionary.insert_stored(pattern)?;
        }
        let bytes = dictionary.num_bytes();
        check("max_bytes", dictionary.max_bytes, bytes <= dictionary.max_bytes, format!("{bytes}.."))?;
        Ok(dictionary)
    }

    fn insert_stored(&mut self, pattern: StoredPattern) -> Result<(), DictionaryError> {
        let StoredPattern { id, kind, shape, usage, importance, references, layers, values } = pattern;
        check("id", id.0, id.0 < self.next_id, format!("0..{}", self.next_id))?;
        check("importance", importance, importance.is_finite() && importance.is_sign_positive(), "0..".into())?;
        if self.entries.contains_key(&id) {
            return Err(DictionaryError::Twice { id });
        }
        let len = shape.num_weights();
        check("values", values.len(), values.len() == len, format!("{len}"))?;
        let values: Vec<f16> = values.into_iter().map(f16::from_f32).collect();
        let energy: f64 = values.iter().map(|value| value.to_f64() * value.to_f64()).sum();
        let mean = energy / len as f64;
        check("values", mean, (mean.sqrt() - 1.0).abs() <= NORM_TOLERANCE, "a mean square of 1".into())?;
        let usage = AtomicU64::new(usage);
        self.insert(id, Entry { shape, kind, usage, importance, references, layers }, &values);
        Ok(())
    }

    /// Writes [`to_json`](Self::to_json) to a file, which appears complete or not at all.
    ///
    /// # Errors
    /// [`DictionaryError::File`] if the path exists or cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), DictionaryError> {
        Ok(write_file(path, &self.to_json()?, false).map_err(Box::new)?)
    }

    /// [`save`](Self::save) in place of an existing file.
    ///
    /// # Errors
    /// [`DictionaryError::File`] if the path is a directory or cannot be written.
    pub fn save_replacing(&self, path: impl AsRef<Path>) -> Result<(), DictionaryError> {
        Ok(write_file(path, &self.to_json()?, true).map_err(Box::new)?)
    }

    /// Reads a file that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// [`DictionaryError::Io`], and as [`from_json`](Self::from_json).
    pub fn load(path: impl AsRef<Path>) -> Result<Self, DictionaryError> {
        let path = path.as_ref();
        let read = std::fs::read(path);
        Self::from_json(&read.map_err(|source| DictionaryError::Io { path: path.to_owned(), source })?)
    }
}

fn check(field: &'static str, value: impl ToString, is_ok: bool, range: String) -> Result<(), DictionaryError> {
    if is_ok { Ok(()) } else { Err(DictionaryError::Field { field, value: value.to_string(), range }) }
}
