//! Looking patterns up: by name, and by likeness.

use super::error::{DictionaryError, check_finite};
use super::pattern::PatternId;
use super::store::PatternDictionary;
use crate::matrix::{Matrix, MatrixRef};
use crate::patterns::{norm, normalise};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A pattern that resembles a target.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PatternMatch {
    /// The pattern.
    pub id: PatternId,
    /// The cosine of the angle between pattern and target, −1 to 1.
    pub cosine: f32,
}

impl PatternDictionary {
    /// The pattern, of norm 1. Counts as a use.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`].
    pub fn get(&self, id: PatternId) -> Result<Arc<Matrix>, DictionaryError> {
        let entry = self.entry(id)?;
        entry.usage.fetch_add(1, Ordering::Relaxed);
        if let Some(pattern) = self.cache().get(&id) {
            return Ok(pattern);
        }
        let values = self.stacks.get(&entry.shape).and_then(|stack| stack.pattern(id));
        let pattern = Arc::new(Matrix::new(entry.shape, values.ok_or(DictionaryError::Absent { id })?)?);
        self.cache().insert(id, Arc::clone(&pattern), 1);
        Ok(pattern)
    }

    /// The patterns most like `target`: at most `top_k` of its shape with |cosine| of at least `threshold`, the best
    /// first. The usual values are 5 and 0.1. A zero target is like nothing.
    ///
    /// # Errors
    /// [`DictionaryError::NotFinite`].
    pub fn find_best_matches(
        &self,
        target: MatrixRef<'_>,
        top_k: usize,
        threshold: f32,
    ) -> Result<Vec<PatternMatch>, DictionaryError> {
        check_finite("the target", target.as_slice())?;
        // A unit target, since the products of a large one could overflow.
        let mut unit = target.as_slice().to_vec();
        normalise(&mut unit);
        let (true, Some(stack)) = (norm(&unit) > 0.0, self.stacks.get(&target.shape())) else { return Ok(Vec::new()) };
        let all = stack.ids.iter().zip(stack.products(&unit));
        let mut matches: Vec<_> = all
            .map(|(id, product)| PatternMatch { id: *id, cosine: product.clamp(-1.0, 1.0) })
            .filter(|found| found.cosine.abs() >= threshold)
            .collect();
        matches.sort_by(|a, b| b.cosine.abs().total_cmp(&a.cosine.abs()).then(a.id.cmp(&b.id)));
        matches.truncate(top_k);
        Ok(matches)
    }
}
