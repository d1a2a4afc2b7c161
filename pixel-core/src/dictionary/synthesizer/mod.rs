//! Weights as sums of a dictionary's patterns, the original's form.

mod config;
mod pursue;
#[cfg(test)]
mod tests;

use super::cholesky::GrowingCholesky;
use super::error::{DictionaryError, check_finite};
use super::pattern::PatternId;
use super::store::PatternDictionary;
use crate::lru::Lru;
use crate::matrix::{Matrix, MatrixRef, Shape};
use crate::patterns::dot;
pub use config::WeightSynthesizerConfig;
pub use pursue::SynthesizedFit;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// One term of a weight: a pattern of norm 1 and its scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PatternRef {
    /// The pattern.
    pub id: PatternId,
    /// What it is multiplied by.
    pub scale: f32,
}

/// Writes weights as sums of patterns and sums them again: `W ≈ Σ sᵢ · P[idᵢ]`.
///
/// # Example
/// ```
/// use pixel_core::{Matrix, Shape, dictionary::{PatternDictionary, WeightSynthesizerConfig}};
/// let shape = Shape::new(2, 3)?;
/// let weight = Matrix::new(shape, vec![1.0, 2.0, 3.0, -1.0, -2.0, -3.0])?;
/// let mut dictionary = PatternDictionary::default();
/// let synthesizer = WeightSynthesizerConfig::new().init()?;
/// // No pattern matches an empty dictionary: the leading singular pair becomes one.
/// let fit = synthesizer.compress_weights(weight.as_ref(), &mut dictionary)?;
/// assert_eq!((fit.refs.len(), dictionary.len()), (1, 1));
/// let again = synthesizer.synthesize(shape, &fit.refs, &dictionary)?;
/// assert!(again.as_slice().iter().zip(weight.as_slice()).all(|(a, b)| (a - b).abs() < 0.01));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WeightSynthesizer {
    config: WeightSynthesizerConfig,
    cache: Mutex<Lru<Key, Arc<Matrix>>>,
}

/// A dictionary's number, a shape, and the terms with the bits of their scales: all that a weight depends on, since
/// patterns never change and ids are never used again.
type Key = (u64, Shape, Vec<(PatternId, u32)>);

impl WeightSynthesizer {
    /// The configuration.
    pub fn config(&self) -> &WeightSynthesizerConfig {
        &self.config
    }

    /// Bytes of the cached weights; never more than [`WeightSynthesizerConfig::cache_bytes`].
    pub fn cached_bytes(&self) -> usize {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).used()
    }

    /// The weight `Σ scale · pattern` of `shape`; zero without terms.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`] for a pattern that was removed, even if the weight is still cached;
    /// [`DictionaryError::ShapeMismatch`]; [`DictionaryError::NotFinite`] for a scale.
    pub fn synthesize(
        &self,
        shape: Shape,
        refs: &[PatternRef],
        dictionary: &PatternDictionary,
    ) -> Result<Arc<Matrix>, DictionaryError> {
        let scales: Vec<f32> = refs.iter().map(|term| term.scale).collect();
        check_finite("the scales", &scales)?;
        refs.iter().try_for_each(|term| check_shape(term.id, shape, dictionary))?;
        let terms = refs.iter().map(|term| (term.id, term.scale.to_bits())).collect();
        let key: Key = (dictionary.instance(), shape, terms);
        if let Some(weight) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(weight);
        }
        let weight = Arc::new(sum(shape, &scales, &patterns(shape, refs, dictionary)?));
        let bytes = 4 * shape.num_weights();
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&weight), bytes);
        Ok(weight)
    }

    /// The same terms with the scales that fit `weight` best, by least squares; where patterns depend on one another, a
    /// ridge of 1e-6 decides.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`], [`DictionaryError::ShapeMismatch`]; [`DictionaryError::NotFinite`] for a weight.
    pub fn optimize_scales(
        &self,
        refs: &[PatternRef],
        weight: MatrixRef<'_>,
        dictionary: &PatternDictionary,
    ) -> Result<Vec<PatternRef>, DictionaryError> {
        check_finite("the weight", weight.as_slice())?;
        let patterns = patterns(weight.shape(), refs, dictionary)?;
        let mut gram = GrowingCholesky::default();
        for (i, pattern) in patterns.iter().enumerate() {
            let products: Vec<f64> = patterns[..=i].iter().map(|p| dot(p.as_slice(), pattern.as_slice())).collect();
            gram.push(&products);
        }
        let products: Vec<f64> = patterns.iter().map(|p| dot(p.as_slice(), weight.as_slice())).collect();
        let scales = gram.solve(&products);
        Ok(refs.iter().zip(scales).map(|(term, scale)| PatternRef { id: term.id, scale: scale as f32 }).collect())
    }
}

fn check_shape(id: PatternId, expected: Shape, dictionary: &PatternDictionary) -> Result<(), DictionaryError> {
    let found = dictionary.shape(id)?;
    if found == expected { Ok(()) } else { Err(DictionaryError::ShapeMismatch { id, found, expected }) }
}

fn patterns(
    shape: Shape,
    refs: &[PatternRef],
    dictionary: &PatternDictionary,
) -> Result<Vec<Arc<Matrix>>, DictionaryError> {
    let get = |term: &PatternRef| check_shape(term.id, shape, dictionary).and_then(|()| dictionary.get(term.id));
    refs.iter().map(get).collect()
}

fn sum(shape: Shape, scales: &[f32], patterns: &[Arc<Matrix>]) -> Matrix {
    let mut weight = Matrix::zeros(shape);
    for (scale, pattern) in scales.iter().zip(patterns) {
        let values = weight.as_mut_slice().iter_mut().zip(pattern.as_slice());
        values.for_each(|(out, value)| *out += scale * value);
    }
    weight
}
