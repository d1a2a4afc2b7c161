//! Checkpoints whose weights another tool has quantised: refused where floats are expected, and read as what they
//! stand for where that is known.
//!
//! | of | tensors of a weight | its values |
//! |---|---|---|
//! | F8 | `weight`, `weight_scale_inv` or `weight_scale` | code · scale of the tensor, row, group or block |
//! | GPTQ | `qweight`, `qzeros`, `scales`, `g_idx` | (code − zero) · scale of the group |
//! | AWQ (GEMM) | `qweight`, `qzeros`, `scales` | the same, other packing |
//! | compressed-tensors, packed | `weight_packed`, `weight_shape`, `weight_scale`, `weight_zero_point` | the same |
//! | compressed-tensors, bytes | `weight` I8, `weight_scale`, `weight_zero_point` | the same |
//!
//! F8 is what DeepSeek, Qwen, compressed-tensors and ModelOpt write, as E4M3 or E5M2.
//!
//! Differences of integers are exact in f32, and so are products with F16 and BF16 scales; with F32 scales a product is
//! rounded once.

mod check;
mod error;
mod float8;
mod packed_ints;
mod parts;
mod settings;
#[cfg(test)]
mod tests;
mod weight;

pub use error::QuantisedError;

use super::{ArchiveError, Checkpoint, FloatType};
use parts::Parts;
use settings::{ConfigFile, Settings};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use weight::QuantisedWeight;

/// A checkpoint of which some weights are quantised in a way that can be read.
#[derive(Debug)]
pub struct QuantisedCheckpoint<'a> {
    checkpoint: &'a Checkpoint,
    config: Option<ConfigFile>,
    settings: Settings,
    /// By the names that they have as floats, with their shapes.
    weights: BTreeMap<String, (Parts, [usize; 2])>,
    /// Tensors that belong to them.
    parts: BTreeSet<String>,
}

/// A quantised weight as it is stored.
#[derive(Debug)]
pub struct StoredWeight<'a>(QuantisedWeight<'a>);

impl<'a> QuantisedCheckpoint<'a> {
    /// Finds the quantised weights of `checkpoint`, and checks the types and shapes of their tensors.
    ///
    /// # Errors
    /// [`ArchiveError::NotQuantised`]; [`ArchiveError::Quantised`] if some are of a kind that is not read;
    /// [`ArchiveError::QuantisedWeight`] for parts that do not fit each other; [`ArchiveError::TwoWeights`] if one is
    /// there as floats too.
    pub fn of(checkpoint: &'a Checkpoint) -> Result<Self, ArchiveError> {
        let Some(found) = checkpoint.mark_of_quantisation() else {
            return Err(ArchiveError::NotQuantised { path: checkpoint.root().to_owned() });
        };
        let (weights, parts) = parts::find(checkpoint)?;
        let unread = |found| Err(check::refusal(checkpoint, found, false));
        let config = ConfigFile::of(checkpoint);
        let settings = Settings::of(config.as_ref());
        if weights.is_empty() {
            return unread(found);
        }
        if let Some(name) = &settings.unread {
            return unread(format!("{} says \"{name}\"", settings::CONFIG_FILE));
        }
        let others = || checkpoint.tensors().iter().filter(|(name, _)| !parts.contains(*name));
        if let Some((name, _)) = others().find(|(name, info)| check::is_mark(name) || check::is_narrow(info.dtype)) {
            return unread(format!("tensor \"{name}\" is of a quantised weight"));
        }
        if let Some((name, _)) = others().find(|(name, _)| weights.contains_key(*name)) {
            let (path, codes) = (checkpoint.root().to_owned(), weights[name].codes.clone());
            return Err(ArchiveError::TwoWeights { path, tensor: name.clone(), codes });
        }
        let with_shape = |(name, parts): (String, Parts)| {
            let shape = parts::open(checkpoint, &settings, &parts)?.shape;
            Ok((name, (parts, shape)))
        };
        let weights = weights.into_iter().map(with_shape).collect::<Result<_, ArchiveError>>()?;
        Ok(Self { checkpoint, config, settings, weights, parts })
    }

    /// The names of the quantised weights, as they are called once they are floats, each with its shape `[d_output,
    /// d_input]` and its tensor of codes.
    pub fn weights(&self) -> impl Iterator<Item = (&str, [usize; 2], &str)> {
        self.weights.iter().map(|(name, (parts, shape))| (name.as_str(), *shape, parts.codes.as_str()))
    }

    /// The number of values of all tensors once they are floats.
    pub fn num_values(&self) -> u64 {
        let weights: usize = self.weights.values().map(|(_, [m, n])| m * n).sum();
        let others = self.others().map(|name| self.checkpoint.tensors()[name].shape.iter().product::<usize>());
        (weights + others.sum::<usize>()) as u64
    }

    /// The names of the tensors that are no part of a quantised weight.
    pub fn others(&self) -> impl Iterator<Item = &str> {
        self.checkpoint.tensors().keys().filter(|name| !self.parts.contains(*name)).map(String::as_str)
    }

    /// Opens the quantised weight `name`.
    ///
    /// # Errors
    /// [`ArchiveError::NoSuchTensor`], [`ArchiveError::QuantisedWeight`].
    pub fn weight(&self, name: &str) -> Result<StoredWeight<'_>, ArchiveError> {
        let no_such =
            || ArchiveError::NoSuchTensor { path: self.checkpoint.root().to_owned(), tensor: name.to_owned() };
        let (parts, _) = self.weights.get(name).ok_or_else(no_such)?;
        parts::open(self.checkpoint, &self.settings, parts).map(StoredWeight)
    }

    /// The `config.json` beside the weights, if there is one, as it is once they are floats of type `dtype`.
    pub(crate) fn dense_config(&self, dtype: FloatType) -> Option<(&'static str, String)> {
        let dtype = match dtype {
            FloatType::F64 => "float64",
            FloatType::F32 => "float32",
            FloatType::F16 => "float16",
            FloatType::BF16 => "bfloat16",
        };
        self.config.as_ref().map(|config| (settings::CONFIG_FILE, config.dense(dtype)))
    }

    /// Whether the file `path`, relative to the weights, is of no use once they are floats.
    pub(crate) fn is_obsolete(path: &Path) -> bool {
        settings::describes_quantisation(path)
    }
}

impl StoredWeight<'_> {
    /// `[d_output, d_input]`.
    pub const fn shape(&self) -> [usize; 2] {
        self.0.shape
    }

    /// The values of `rows`, `[rows, d_input]`, into `out`.
    ///
    /// # Panics
    /// If `out` has another size, or there are fewer rows.
    pub fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        self.0.read_rows(rows, out);
    }
}
