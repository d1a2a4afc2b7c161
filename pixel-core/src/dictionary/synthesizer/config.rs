//! How a synthesizer matches, prunes and caches.

use super::WeightSynthesizer;
use crate::dictionary::PursuitMethod;
use crate::error::ConfigError;
use crate::lru::Lru;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;

/// How weights are matched and cached.
///
/// # Example
/// ```
/// use pixel_core::dictionary::WeightSynthesizerConfig;
/// let synthesizer = WeightSynthesizerConfig::new().with_max_patterns(8).init()?;
/// assert!(WeightSynthesizerConfig::new().with_quality_threshold(1.5).init().is_err());
/// # Ok::<(), pixel_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeightSynthesizerConfig {
    /// Patterns of a weight, at least 1 (default 16).
    pub max_patterns: usize,
    /// The least |cosine| with the residual that counts as a match, 0 to 1 (default 0.1).
    pub match_threshold: f32,
    /// The quality at which to stop, `1 − ‖residual‖ / ‖weight‖`, 0 to 1 (default 0.95).
    pub quality_threshold: f32,
    /// Terms whose |scale| is below this share of the weight's norm are dropped, 0 to 1 (default 0.01).
    pub pruning_threshold: f32,
    /// Bytes of synthesised weights that are cached (default 200 MB).
    pub cache_bytes: usize,
    /// Whether scales are refitted after each pick (default orthogonal: they are).
    pub method: PursuitMethod,
}

impl Default for WeightSynthesizerConfig {
    fn default() -> Self {
        Self {
            max_patterns: 16,
            match_threshold: 0.1,
            quality_threshold: 0.95,
            pruning_threshold: 0.01,
            cache_bytes: 200 << 20,
            method: PursuitMethod::Orthogonal,
        }
    }
}

impl WeightSynthesizerConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`max_patterns`](Self::max_patterns).
    pub fn with_max_patterns(mut self, max_patterns: usize) -> Self {
        self.max_patterns = max_patterns;
        self
    }

    /// Sets [`match_threshold`](Self::match_threshold).
    pub fn with_match_threshold(mut self, match_threshold: f32) -> Self {
        self.match_threshold = match_threshold;
        self
    }

    /// Sets [`quality_threshold`](Self::quality_threshold).
    pub fn with_quality_threshold(mut self, quality_threshold: f32) -> Self {
        self.quality_threshold = quality_threshold;
        self
    }

    /// Sets [`pruning_threshold`](Self::pruning_threshold).
    pub fn with_pruning_threshold(mut self, pruning_threshold: f32) -> Self {
        self.pruning_threshold = pruning_threshold;
        self
    }

    /// Sets [`cache_bytes`](Self::cache_bytes).
    pub fn with_cache_bytes(mut self, cache_bytes: usize) -> Self {
        self.cache_bytes = cache_bytes;
        self
    }

    /// Sets [`method`](Self::method).
    pub fn with_method(mut self, method: PursuitMethod) -> Self {
        self.method = method;
        self
    }

    /// Refuses what is out of range.
    ///
    /// # Errors
    /// [`ConfigError::Range`] with the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        ConfigError::range("max_patterns", self.max_patterns, 1..)?;
        ConfigError::range("match_threshold", self.match_threshold, 0.0..=1.0f32)?;
        ConfigError::range("quality_threshold", self.quality_threshold, 0.0..=1.0f32)?;
        ConfigError::range("pruning_threshold", self.pruning_threshold, 0.0..=1.0f32)
    }

    /// The synthesizer.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn init(self) -> Result<WeightSynthesizer, ConfigError> {
        self.validate()?;
        Ok(WeightSynthesizer { cache: Mutex::new(Lru::new(self.cache_bytes)), config: self })
    }
}
