//! [`PIXELConfig`]: one description of a model and of how its weights are compressed.

use crate::archive::FloatType;
use crate::codec::{self, CodecSpec};
use crate::dictionary::{DictionaryError, PatternDictionary, WeightSynthesizer, WeightSynthesizerConfig};
use crate::error::{ConfigError, NumberRange};
use crate::matrix::Shape;
use crate::plan::{Recipe, Treatment};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Bits of the numbers that a compression ratio refers to.
const DENSE_BITS: f64 = 32.0;

/// The largest numbers that a configuration accepts: no size in bytes that follows from them overflows 64 bits.
const MAX_MATRIX_SIZE: usize = 1 << 16;
const MAX_LAYERS: usize = 1 << 14;
const MAX_PATTERNS: usize = 1 << 12;
const MAX_CACHE: usize = 1 << 20;

/// Everything that a [`PIXELCompressor`](crate::compressor::PIXELCompressor), a [`PatternDictionary`] and a
/// [`WeightSynthesizer`] are made from.
///
/// # Example
/// ```
/// use pixel_core::PIXELConfig;
/// let config = PIXELConfig::for_small_model();
/// assert_eq!(config.codec_spec()?.to_string(), "lapped:4"); // the best rate within .15 · 32 bits
/// assert_eq!(PIXELConfig::from_toml(&config.to_toml())?, config);
/// # Ok::<(), pixel_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PIXELConfig {
    /// Side of the largest matrix that the synthesizer's cache is sized for, 1 to 65536; no pattern is larger (default
    /// 64).
    pub matrix_size: usize,
    /// Width of the model, which in the original sizes the network that picks patterns. There is no such network yet,
    /// so a value here is refused (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Layers of the model, 1 to 16384 (default 4); the dictionary has room for the patterns of all of them.
    pub num_layers: usize,
    /// Width of a pattern's embedding in the network that picks patterns; refused as `hidden_size` is (default: none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern_embed_dim: Option<usize>,
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
    /// The quality, 1 − relative error, at which pattern matching stops, and below which a report marks a weight; 0 to
    /// 1 (default .95).
    pub quality_threshold: f32,
    /// Patterns that a weight may be a sum of, 1 to 4096 (default 16); the synthesizer's, and what the dictionary has
    /// room for.
    pub max_patterns_per_layer: usize,
    /// Sides of the square patterns of the dictionary, ascending (default 4, 8, 16); the matching codec's tile is the
    /// largest.
    pub pattern_sizes: Vec<usize>,
    /// Whether the matching codec learns patterns from each weight (default false: they cost bits). Refused with
    /// another codec.
    pub use_svd_init: bool,
    /// How many it learns, as a share of `max_patterns_per_layer`, 0 to 1 (default: none given, which means .25).
    /// Refused unless patterns are learned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub svd_rank_ratio: Option<f64>,
    /// Terms below this share of the weight's norm are dropped, 0 to 1 (default .01).
    pub pruning_threshold: f32,
    /// Patterns that the dictionary caches and matrices that the synthesizer caches, 1 to 1048576 (default 256).
    pub cache_size: usize,
}

/// How indices and scales of patterns are stored by the matching codec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizationConfig {
    /// Whether the next two fields apply; otherwise the codec's defaults do (default true).
    pub enabled: bool,
    /// Bits of an index, 1 to 14 (default: none given, which means 8). Refused with another codec, or if they do not
    /// apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern_bits: Option<u32>,
    /// Bits of a scale, 0 (as suits the tile) to 6 (default: none given, which means 0). Refused as `pattern_bits` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_bits: Option<u32>,
    /// Whether weights of a large dynamic range are expected: they are then rotated first, as the codec prefers; never
    /// if false (default true).
    pub dynamic_range: bool,
}

/// Bytes that a configuration plans for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryBudget {
    /// Patterns of the dictionary, F16.
    pub dictionary: usize,
    /// Synthesised matrices, F32.
    pub cache: usize,
}

impl MemoryBudget {
    /// The sum.
    pub const fn total(&self) -> usize {
        self.dictionary + self.cache
    }
}

impl Default for PIXELConfig {
    fn default() -> Self {
        Self {
            matrix_size: 64,
            hidden_size: None,
            num_layers: 4,
            pattern_embed_dim: None,
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
            svd_rank_ratio: None,
            pruning_threshold: 0.01,
            cache_size: 256,
        }
    }
}

impl Default for QuantizationConfig {
    fn default() -> Self {
        Self { enabled: true, pattern_bits: None, scale_bits: None, dynamic_range: true }
    }
}

impl PIXELConfig {
    /// For models of a few million weights: matrices of 64, 4 layers; ratio .15, 8 patterns of sides 2, 4, 8.
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

    /// For models of billions of weights: matrices of 512, 32 layers; ratio .05, 32 patterns of sides 8, 16,
    /// 32.
    pub fn for_large_model() -> Self {
        Self {
            matrix_size: 512,
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

    /// Refuses what is out of range, and what has no effect.
    ///
    /// # Errors
    /// [`ConfigError`] with the field and its range, or why it has no effect.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (c, q) = (&self.compression, &self.quantization);
        ConfigError::range("matrix_size", self.matrix_size, 1..=MAX_MATRIX_SIZE)?;
        ConfigError::range("num_layers", self.num_layers, 1..=MAX_LAYERS)?;
        ConfigError::range("target_ratio", c.target_ratio, NumberRange::above(0.0, 1.0))?;
        ConfigError::range("quality_threshold", c.quality_threshold, 0.0..=1.0f32)?;
        ConfigError::range("max_patterns_per_layer", c.max_patterns_per_layer, 1..=MAX_PATTERNS)?;
        let ascending = c.pattern_sizes.windows(2).all(|pair| pair[0] < pair[1]);
        let in_range = c.pattern_sizes.iter().all(|size| (1..=self.matrix_size).contains(size));
        if !(ascending && in_range) || c.pattern_sizes.is_empty() {
            let (sizes, matrix_size) = (c.pattern_sizes.clone(), self.matrix_size);
            return Err(ConfigError::PatternSizes { sizes, matrix_size });
        }
        ConfigError::range("svd_rank_ratio", c.svd_rank_ratio.unwrap_or_default(), 0.0..=1.0)?;
        ConfigError::range("pruning_threshold", c.pruning_threshold, 0.0..=1.0f32)?;
        ConfigError::range("cache_size", c.cache_size, 1..=MAX_CACHE)?;
        ConfigError::range("pattern_bits", q.pattern_bits.unwrap_or(8), 1..=14u32)?;
        ConfigError::range("scale_bits", q.scale_bits.unwrap_or_default(), 0..=6u32)?;
        self.check_effects()?;
        self.codec_spec()?.build().map(|_| ())
    }

    /// Refuses fields that are set and change nothing.
    fn check_effects(&self) -> Result<(), ConfigError> {
        let (c, q) = (&self.compression, &self.quantization);
        let is_matching = self.codec.as_ref().is_some_and(|spec| spec.codec == "matching");
        const NO_NETWORK: &str = "it sizes the network that picks patterns, which does not exist yet";
        const MATCHING_ONLY: &str = "only the codec matching reads it";
        const NOT_ENABLED: &str = "quantization.enabled is false";
        for (field, is_idle, reason) in [
            ("hidden_size", self.hidden_size.is_some(), NO_NETWORK),
            ("pattern_embed_dim", self.pattern_embed_dim.is_some(), NO_NETWORK),
            ("use_svd_init", c.use_svd_init && !is_matching, MATCHING_ONLY),
            ("svd_rank_ratio", c.svd_rank_ratio.is_some() && !c.use_svd_init, "use_svd_init is false"),
            ("pattern_bits", q.pattern_bits.is_some() && !is_matching, MATCHING_ONLY),
            ("scale_bits", q.scale_bits.is_some() && !is_matching, MATCHING_ONLY),
            ("pattern_bits", q.pattern_bits.is_some() && !q.enabled, NOT_ENABLED),
            ("scale_bits", q.scale_bits.is_some() && !q.enabled, NOT_ENABLED),
        ] {
            if is_idle {
                return Err(ConfigError::NoEffect { field, reason });
            }
        }
        Ok(())
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

    /// The requested codec, or the [default](codec::DEFAULT) at the best rate within the target ratio (its lowest if
    /// none is). The matching codec takes its options, where they are not given, from `compression` and `quantization`.
    ///
    /// # Errors
    /// [`ConfigError::UnknownCodec`].
    pub fn codec_spec(&self) -> Result<CodecSpec, ConfigError> {
        let mut spec = match &self.codec {
            Some(spec) => spec.clone(),
            None => {
                let rates = CodecSpec::new(codec::DEFAULT, 1.0).family()?.rates();
                let budget = DENSE_BITS * self.compression.target_ratio;
                let bits = rates.iter().rev().find(|&&rate| rate <= budget).unwrap_or(&rates[0]);
                CodecSpec::new(codec::DEFAULT, *bits)
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
            options.extend([("patterns", q.pattern_bits.unwrap_or(8)), ("scale_bits", q.scale_bits.unwrap_or(0))]);
        }
        if c.use_svd_init {
            let share = c.svd_rank_ratio.unwrap_or(0.25);
            options.insert("learned", (share * c.max_patterns_per_layer as f64).ceil() as u32);
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

    /// The byte limits of the dictionary and the cache.
    pub fn memory_budget(&self) -> MemoryBudget {
        let largest = self.compression.pattern_sizes.last().copied().unwrap_or(1);
        MemoryBudget {
            dictionary: self.capacity() * largest * largest * 2,
            cache: self.compression.cache_size * self.matrix_size * self.matrix_size * 4,
        }
    }

    /// Patterns that the dictionary has room for: those of all layers, and the base patterns, some twenty a size.
    fn capacity(&self) -> usize {
        self.num_layers * self.compression.max_patterns_per_layer + 24 * self.compression.pattern_sizes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_are_those_of_the_original() {
        let small = PIXELConfig::for_small_model();
        assert_eq!((small.matrix_size, small.num_layers), (64, 4));
        assert_eq!((small.compression.target_ratio, small.compression.max_patterns_per_layer), (0.15, 8));
        let large = PIXELConfig::for_large_model();
        assert_eq!((large.matrix_size, large.num_layers), (512, 32));
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
        assert_eq!(spec(0.15), "lapped:4");
        assert_eq!(spec(0.05), "lapped:1.5");
        assert_eq!(spec(0.001), "lapped:1");
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
        assert!(error("[compression]\ntarget_ratio = 2.0").contains("target_ratio = 2 is outside the numbers above 0"));
        assert!(error("[compression]\npattern_sizes = [8, 4]").contains("pattern_sizes = [8, 4]"));
        assert!(error("[quantization]\npattern_bits = 40").contains("pattern_bits = 40"));
        assert!(error("matrix_size = 1099511627776").contains("matrix_size = 1099511627776 is outside 1 to 65536"));
        assert!(error("num_layer = 8").contains("unknown field `num_layer`"));
    }

    #[test]
    fn dictionary_and_synthesizer_obey_the_budget() {
        let config = PIXELConfig::for_small_model();
        let budget = config.memory_budget();
        assert_eq!(budget.cache, 256 * 64 * 64 * 4);
        assert!(config.dictionary().unwrap().num_bytes() <= budget.dictionary);
        assert_eq!(config.synthesizer().unwrap().config().cache_bytes, budget.cache);
        assert_eq!(budget.total(), budget.dictionary + budget.cache);
    }

    #[test]
    fn every_field_is_bounded_and_no_size_overflows_at_the_bounds() {
        let largest = PIXELConfig {
            matrix_size: MAX_MATRIX_SIZE,
            num_layers: MAX_LAYERS,
            compression: CompressionConfig {
                max_patterns_per_layer: MAX_PATTERNS,
                cache_size: MAX_CACHE,
                pattern_sizes: vec![MAX_MATRIX_SIZE],
                ..Default::default()
            },
            ..Default::default()
        };
        largest.validate().unwrap();
        assert!(largest.memory_budget().total() > 1 << 50);
        let changes: [fn(&mut PIXELConfig); 6] = [
            |config| config.matrix_size *= 2,
            |config| config.num_layers *= 2,
            |config| config.compression.max_patterns_per_layer *= 2,
            |config| config.compression.cache_size *= 2,
            |config| config.compression.pattern_sizes = vec![1 << 40],
            |config| config.matrix_size = 1 << 40,
        ];
        for change in changes {
            let mut config = largest.clone();
            change(&mut config);
            assert!(config.validate().is_err(), "{config:?}");
        }
    }

    #[test]
    fn a_field_that_would_do_nothing_is_refused_with_the_reason() {
        let error = |toml: &str| PIXELConfig::from_toml(toml).unwrap_err().to_string();
        let matching = "[codec]\ncodec = 'matching'\nbits = 2\n";
        for (toml, field) in [
            ("hidden_size = 256", "hidden_size"),
            ("pattern_embed_dim = 64", "pattern_embed_dim"),
            ("[compression]\nuse_svd_init = true", "use_svd_init"),
            ("[compression]\nsvd_rank_ratio = 0.5", "svd_rank_ratio"),
            ("[quantization]\npattern_bits = 9", "pattern_bits"),
            ("[quantization]\nscale_bits = 1", "scale_bits"),
        ] {
            let found = error(toml);
            assert!(found.starts_with(&format!("{field} has no effect: ")), "{found}");
        }
        let idle = format!("{matching}[quantization]\nenabled = false\npattern_bits = 9");
        assert!(error(&idle).contains("pattern_bits has no effect: quantization.enabled is false"));
        // Where they have an effect, they are accepted.
        let active = "[compression]\nuse_svd_init = true\nsvd_rank_ratio = 0.5\n[quantization]\nscale_bits = 1";
        let active = format!("{matching}{active}");
        let spec = PIXELConfig::from_toml(&active).unwrap().codec_spec().unwrap();
        assert_eq!(spec.to_string(), "matching:2:learned=8:patterns=8:scale_bits=1:tile=16");
    }
}
