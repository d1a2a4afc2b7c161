//! [`PIXELConfig`]: one description of a model and of how its weights are compressed.

use crate::archive::FloatType;
use crate::codec::CodecSpec;
use crate::dictionary::{DictionaryError, PatternDictionary};
use crate::error::ConfigError;
use crate::matrix::Shape;
use crate::recipe::{Recipe, Treatment};
use crate::synthesis::{WeightSynthesizer, WeightSynthesizerConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bits of the numbers that a compression ratio refers to.
const DENSE_BITS: f64 = 32.0;

/// Everything that a [`PIXELCompressor`](crate::compressor::PIXELCompressor), a [`PatternDictionary`] and a
/// [`WeightSynthesizer`] are made from.
///
/// # Example
/// ```
/// use pixel_core::PIXELConfig;
/// let config = PIXELConfig::for_small_model();
/// assert_eq!(config.codec_spec()?.to_string(), "trellis:4"); // the best rate within .15 · 32 bits
/// assert_eq!(PIXELConfig::from_toml(&config.to_toml())?, config);
/// # Ok::<(), pixel_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PIXELConfig {
    /// Side of the largest matrix that the synthesizer's cache is sized for; no pattern is larger (default 64).
    pub matrix_size: usize,
    /// Width of the model (default 256). With `pattern_embed_dim` it sizes the network that picks patterns, see
    /// [`memory_budget`](Self::memory_budget).
    pub hidden_size: usize,
    /// Layers of the model (default 4); the dictionary has room for the patterns of all of them.
    pub num_layers: usize,
    /// Width of a pattern's embedding in the network that picks patterns (default 64).
    pub pattern_embed_dim: usize,
    /// How far to compress, and with which patterns.
    pub compression: CompressionConfig,
    /// How indices and scales of patterns are stored.
    pub quantization: QuantizationConfig,
    /// The codec; if absent, the trellis at the best rate within `compression.target_ratio`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub codec: Option<CodecSpec>,
    /// The type of decompressed weights (default F32).
    pub dtype: FloatType,
    /// The seed of the rotations (default 42).
    pub seed: u64,
}

/// How far to compress, and with which patterns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CompressionConfig {
    /// Compressed over dense F32 size, above 0 and at most 1 (default .1).
    pub target_ratio: f64,
    /// The quality, 1 − relative error, at which pattern matching stops, and below which a report marks a weight; 0 to 1
    /// (default .95).
    pub quality_threshold: f32,
    /// Patterns that a weight may be a sum of (default 16).
    pub max_patterns_per_layer: usize,
    /// Sides of the square patterns of the dictionary, ascending (default 4, 8, 16); the matching codec's tile is the
    /// largest.
    pub pattern_sizes: Vec<usize>,
    /// Whether the matching codec learns patterns from each weight (default false: they cost bits).
    pub use_svd_init: bool,
    /// How many it learns, as a share of `max_patterns_per_layer`, 0 to 1 (default .25).
    pub svd_rank_ratio: f64,
    /// Terms below this share of the weight's norm are dropped, 0 to 1 (default .01).
    pub pruning_threshold: f32,
    /// Patterns that the dictionary, and matrices that the synthesizer keeps at hand (default 256).
    pub cache_size: usize,
}

/// How indices and scales of patterns are stored by the matching codec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizationConfig {
    /// Whether the next two fields count; the codec's defaults do otherwise (default true).
    pub enabled: bool,
    /// Bits of an index, 1 to 14 (default 8).
    pub pattern_bits: u32,
    /// Bits of a scale, 0 (as suits the tile) to 6 (default 0).
    pub scale_bits: u32,
    /// Whether weights of a large dynamic range are expected: they are then rotated first, as the codec prefers; never if
    /// false (default true).
    pub dynamic_range: bool,
}

/// Bytes that a configuration plans for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryBudget {
    /// Patterns of the dictionary, F16.
    pub dictionary: usize,
    /// The network that picks patterns: an embedding for each, and a projection from `hidden_size`, F32.
    pub network: usize,
    /// Synthesised matrices, F32.
    pub cache: usize,
}

impl MemoryBudget {
    /// The sum.
    pub const fn total(&self) -> usize {
        self.dictionary + self.network + self.cache
    }
}

impl Default for PIXELConfig {
    fn default() -> Self {
        Self {
            matrix_size: 64,
            hidden_size: 256,
            num_layers: 4,
            pattern_embed_dim: 64,
            compression: CompressionConfig::default(),
            quantization: QuantizationConfig::default(),
            codec: None,
            dtype: FloatType::F32,
            seed: 42,
        }
    }
}

impl Default for CompressionConfig {
    fn default() -> Self {
        Self {
            target_ratio: 0.1,
            quality_threshold: 0.95,
            max_patterns_per_layer: 16,
            pattern_sizes: vec![4, 8, 16],
            use_svd_init: false,
            svd_rank_ratio: 0.25,
            pruning_threshold: 0.01,
            cache_size: 256,
        }
    }
}

impl Default for QuantizationConfig {
    fn default() -> Self {
        Self { enabled: true, pattern_bits: 8, scale_bits: 0, dynamic_range: true }
    }
}

impl PIXELConfig {
    /// For models of a few million weights: matrices of 64, width 256, 4 layers; ratio .15, 8 patterns of sides 2, 4, 8.
    pub fn for_small_model() -> Self {
        Self {
            compression: CompressionConfig {
                target_ratio: 0.15,
                max_patterns_per_layer: 8,
                pattern_sizes: vec![2, 4, 8],
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// For models of billions of weights: matrices of 512, width 4096, 32 layers; ratio .05, 32 patterns of sides 8, 16,
    /// 32.
    pub fn for_large_model() -> Self {
        Self {
            matrix_size: 512,
            hidden_size: 4096,
            num_layers: 32,
            compression: CompressionConfig {
                target_ratio: 0.05,
                max_patterns_per_layer: 32,
                pattern_sizes: vec![8, 16, 32],
                ..Default::default()
            },
            ..Default::default()
        }
    }

    /// Refuses what is out of range.
    ///
    /// # Errors
    /// [`ConfigError`] with the field and its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (c, q) = (&self.compression, &self.quantization);
        let share = |x: f64| (0.0..=1.0).contains(&x);
        require(self.matrix_size >= 1, "matrix_size", self.matrix_size, "at least 1")?;
        require(self.hidden_size >= self.matrix_size, "hidden_size", self.hidden_size, "at least matrix_size")?;
        require(self.num_layers >= 1, "num_layers", self.num_layers, "at least 1")?;
        require(self.pattern_embed_dim >= 1, "pattern_embed_dim", self.pattern_embed_dim, "at least 1")?;
        require(c.target_ratio > 0.0 && c.target_ratio <= 1.0, "target_ratio", c.target_ratio, "above 0, at most 1")?;
        require(share(c.quality_threshold.into()), "quality_threshold", c.quality_threshold, "0 to 1")?;
        require(c.max_patterns_per_layer >= 1, "max_patterns_per_layer", c.max_patterns_per_layer, "at least 1")?;
        let ascending = c.pattern_sizes.windows(2).all(|pair| pair[0] < pair[1]);
        let in_range = c.pattern_sizes.iter().all(|size| (1..=self.matrix_size).contains(size));
        let sizes = format!("{:?}", c.pattern_sizes);
        require(
            ascending && in_range && !c.pattern_sizes.is_empty(),
            "pattern_sizes",
            sizes,
            "1 to matrix_size, ascending",
        )?;
        require(share(c.svd_rank_ratio), "svd_rank_ratio", c.svd_rank_ratio, "0 to 1")?;
        require(share(c.pruning_threshold.into()), "pruning_threshold", c.pruning_threshold, "0 to 1")?;
        require(c.cache_size >= 1, "cache_size", c.cache_size, "at least 1")?;
        require((1..=14).contains(&q.pattern_bits), "pattern_bits", q.pattern_bits, "1 to 14")?;
        require(q.scale_bits <= 6, "scale_bits", q.scale_bits, "0 to 6")?;
        self.codec_spec()?.build().map(|_| ())
    }

    /// Reads a configuration from TOML and validates it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::parsed(toml::from_str(text).map_err(|e| e.to_string()))
    }

    /// Reads a configuration from JSON and validates it.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        Self::parsed(serde_json::from_str(text).map_err(|e| e.to_string()))
    }

    fn parsed(config: Result<Self, String>) -> Result<Self, ConfigError> {
        let config = config.map_err(|message| ConfigError::Parse { what: "configuration".into(), message })?;
        config.validate()?;
        Ok(config)
    }

    /// The configuration as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration has no value that TOML lacks")
    }

    /// The configuration as JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a configuration has no value that JSON lacks")
    }

    /// The codec asked for, or the trellis at the best rate within the target ratio (its lowest if none is). The matching
    /// codec takes its options, where they are not given, from `compression` and `quantization`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownCodec`].
    pub fn codec_spec(&self) -> Result<CodecSpec, ConfigError> {
        let mut spec = match &self.codec {
            Some(spec) => spec.clone(),
            None => {
                let rates = CodecSpec::new("trellis", 1.0).family()?.rates();
                let budget = DENSE_BITS * self.compression.target_ratio;
                let bits = rates.iter().rev().find(|&&rate| rate <= budget).unwrap_or(&rates[0]);
                CodecSpec::new("trellis", *bits)
            }
        };
        if spec.codec == "matching" {
            for (name, value) in self.matching_options() {
                spec.options.entry(name.to_owned()).or_insert(value);
            }
        }
        Ok(spec)
    }

    fn matching_options(&self) -> BTreeMap<&'static str, u32> {
        let (c, q) = (&self.compression, &self.quantization);
        let mut options = BTreeMap::new();
        if let Some(&tile) = c.pattern_sizes.last() {
            options.insert("tile", tile.min(64) as u32);
        }
        if q.enabled {
            options.extend([("patterns", q.pattern_bits), ("scale_bits", q.scale_bits)]);
        }
        if c.use_svd_init {
            options.insert("learned", (c.svd_rank_ratio * c.max_patterns_per_layer as f64).ceil() as u32);
        }
        options
    }

    /// The recipe that gives every layer this codec.
    ///
    /// # Errors
    /// [`ConfigError`]; see [`validate`](Self::validate).
    pub fn recipe(&self) -> Result<Recipe, ConfigError> {
        let CodecSpec { codec, bits, options } = self.codec_spec()?;
        let rotate = (!self.quantization.dynamic_range).then_some(false);
        let layers =
            Treatment { codec: Some(codec), bits: Some(bits), options: Some(options), rotate, ..Default::default() };
        Ok(Recipe { seed: self.seed, layers, ..Default::default() })
    }

    /// A dictionary with the base patterns of every size, and room for those of all layers.
    ///
    /// # Errors
    /// [`DictionaryError`] if there is not even room for the base patterns.
    pub fn dictionary(&self) -> Result<PatternDictionary, DictionaryError> {
        let budget = self.memory_budget();
        let mut dictionary =
            PatternDictionary::new(self.capacity(), self.compression.cache_size).with_max_bytes(budget.dictionary);
        for &size in &self.compression.pattern_sizes {
            if let Ok(shape) = Shape::new(size, size) {
                dictionary.generate_base_patterns(shape)?;
            }
        }
        Ok(dictionary)
    }

    /// A synthesizer with this configuration's thresholds and cache.
    ///
    /// # Errors
    /// [`ConfigError::Range`].
    pub fn synthesizer(&self) -> Result<WeightSynthesizer, ConfigError> {
        let c = &self.compression;
        WeightSynthesizerConfig::new()
            .with_max_patterns(c.max_patterns_per_layer)
            .with_quality_threshold(c.quality_threshold)
            .with_pruning_threshold(c.pruning_threshold)
            .with_cache_bytes(self.memory_budget().cache)
            .init()
    }

    /// The bytes that the parts may take: the dictionary and the cache obey them.
    pub fn memory_budget(&self) -> MemoryBudget {
        let largest = self.compression.pattern_sizes.last().copied().unwrap_or(1);
        MemoryBudget {
            dictionary: self.capacity() * largest * largest * 2,
            network: (self.capacity() + self.hidden_size) * self.pattern_embed_dim * 4,
            cache: self.compression.cache_size * self.matrix_size * self.matrix_size * 4,
        }
    }

    /// Patterns that the dictionary has room for: those of all layers beside the base patterns, some twenty a size.
    fn capacity(&self) -> usize {
        self.num_layers * self.compression.max_patterns_per_layer + 24 * self.compression.pattern_sizes.len()
    }
}

fn require(holds: bool, field: &'static str, value: impl ToString, range: &str) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError::Range { field, value: value.to_string(), range: range.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_are_those_of_the_original() {
        let small = PIXELConfig::for_small_model();
        assert_eq!((small.matrix_size, small.hidden_size, small.num_layers), (64, 256, 4));
        assert_eq!((small.compression.target_ratio, small.compression.max_patterns_per_layer), (0.15, 8));
        let large = PIXELConfig::for_large_model();
        assert_eq!((large.matrix_size, large.hidden_size, large.num_layers), (512, 4096, 32));
        assert_eq!(large.compression.pattern_sizes, [8, 16, 32]);
        for config in [PIXELConfig::default(), small, large] {
            config.validate().unwrap();
            assert_eq!(PIXELConfig::from_json(&config.to_json()).unwrap(), config);
            assert_eq!(PIXELConfig::from_toml(&config.to_toml()).unwrap(), config);
        }
    }

    #[test]
    fn the_ratio_chooses_the_rate() {
        let spec = |ratio| {
            let mut config = PIXELConfig::default();
            config.compression.target_ratio = ratio;
            config.codec_spec().unwrap().to_string()
        };
        assert_eq!(spec(0.15), "trellis:4");
        assert_eq!(spec(0.05), "trellis:1.5");
        assert_eq!(spec(0.001), "trellis:1");
    }

    #[test]
    fn the_matching_codec_takes_the_pattern_fields() {
        let mut config = PIXELConfig { codec: Some(CodecSpec::new("matching", 2.0)), ..PIXELConfig::for_small_model() };
        assert_eq!(config.codec_spec().unwrap().to_string(), "matching:2:patterns=8:scale_bits=0:tile=8");
        config.compression.use_svd_init = true;
        config.quantization.enabled = false;
        assert_eq!(config.codec_spec().unwrap().to_string(), "matching:2:learned=2:tile=8");
        config.quantization.dynamic_range = false;
        assert_eq!(config.recipe().unwrap().layers.rotate, Some(false));
    }

    #[test]
    fn what_is_out_of_range_is_named() {
        let error = |toml: &str| PIXELConfig::from_toml(toml).unwrap_err().to_string();
        assert!(error("[compression]\ntarget_ratio = 2.0").contains("target_ratio = 2 is outside above 0"));
        assert!(error("[compression]\npattern_sizes = [8, 4]").contains("pattern_sizes = [8, 4]"));
        assert!(error("[quantization]\npattern_bits = 40").contains("pattern_bits = 40"));
        assert!(error("hidden_size = 8").contains("hidden_size = 8 is outside at least matrix_size"));
        assert!(error("num_layer = 8").contains("unknown field `num_layer`"));
    }

    #[test]
    fn dictionary_and_synthesizer_obey_the_budget() {
        let config = PIXELConfig::for_small_model();
        let budget = config.memory_budget();
        assert_eq!(budget.cache, 256 * 64 * 64 * 4);
        assert!(config.dictionary().unwrap().num_bytes() <= budget.dictionary);
        assert_eq!(config.synthesizer().unwrap().config().cache_bytes, budget.cache);
        assert_eq!(budget.total(), budget.dictionary + budget.network + budget.cache);
    }
}
