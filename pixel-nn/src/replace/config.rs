//! Which weights are replaced, and by which codec.

use super::report::SkipReason;
use super::survey::{Found, LayerKind};
use crate::calibration::InputMoments;
use crate::error::LayerError;
use crate::synthesis::SynthesisMode;
use burn::config::Config;
use pixel_core::plan::MIN_WEIGHTS;
use pixel_core::{CodecSpec, PatternDictionary};
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// How [`replace_linear_layers`](super::replace_linear_layers) treats a model.
///
/// Expressions are found anywhere in a parameter's path, `blocks.0.fc1.weight`; anchor them with `^` and `$`. One that
/// matches no weight of the kinds asked for is an error, since it is a slip of the pen more often than not.
///
/// # Example
/// ```
/// use pixel_core::CodecSpec;
/// use pixel_nn::ReplaceConfig;
/// let config = ReplaceConfig::new(CodecSpec::new("trellis", 2.0))
///     .with_exclude(vec![r"^head\.".into()])
///     .with_rule(r"\.0\.", CodecSpec::new("trellis", 4.0))
///     .with_embeddings(Some(CodecSpec::new("uniform", 8.0)));
/// assert_eq!(config.rules.len(), 1);
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceConfig {
    /// The codec of linear layers.
    pub codec: CodecSpec,
    /// Expressions of which one must match the path. Default: none, all weights.
    #[serde(default)]
    pub include: Vec<String>,
    /// Expressions of which none may match the path. Default: none.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// The codec of embeddings. Default: none, they stay dense.
    #[serde(default)]
    pub embeddings: Option<CodecSpec>,
    /// The codec of convolutions, transposed ones too. Default: none, they stay dense.
    #[serde(default)]
    pub convolutions: Option<CodecSpec>,
    /// Expressions whose weights take another codec; the first that matches wins. Default: none.
    #[serde(default)]
    pub rules: Vec<ReplaceRule>,
    /// The seed of the rotations' signs. Default: 0.
    #[serde(default)]
    pub seed: u64,
    /// Weights of fewer values stay dense, named or not. Default: 1024, as in a recipe.
    #[serde(default = "min_weights")]
    pub min_weights: usize,
    /// Whether a model of which no weight is replaced is returned as it is. Default: no, it is an error.
    #[serde(default)]
    pub allow_nothing: bool,
    /// Whether training changes dictionaries, as
    /// [`PatternWeight::with_trained_dictionary`](crate::PatternWeight::with_trained_dictionary) says. Default: no.
    #[serde(default)]
    pub train_dictionaries: bool,
    /// A dictionary of the caller's, whose patterns the codec `matching` stores with each weight in place of learned
    /// ones. Default: none. Not part of a file.
    #[serde(skip)]
    pub dictionary: Option<Arc<PatternDictionary>>,
    /// What is known about the inputs of the layers. Default: nothing. Not part of a file.
    #[serde(skip)]
    pub calibration: Option<Arc<dyn InputMoments>>,
    /// When dense weights exist. Default: on demand. Not part of a file.
    #[serde(skip)]
    pub synthesis: SynthesisMode,
}

/// A codec for the weights whose path matches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplaceRule {
    /// The expression.
    #[serde(rename = "match")]
    pub pattern: String,
    /// The codec.
    pub codec: CodecSpec,
}

/// 4096 bytes in F32: names and headers of a record weigh as much as what is won below that.
fn min_weights() -> usize {
    MIN_WEIGHTS
}

impl Config for ReplaceConfig {}

impl ReplaceConfig {
    /// All linear layers by `codec`, the rest by the defaults.
    pub fn new(codec: CodecSpec) -> Self {
        Self {
            codec,
            include: Vec::new(),
            exclude: Vec::new(),
            embeddings: None,
            convolutions: None,
            rules: Vec::new(),
            seed: 0,
            min_weights: min_weights(),
            allow_nothing: false,
            train_dictionaries: false,
            dictionary: None,
            calibration: None,
            synthesis: SynthesisMode::default(),
        }
    }

    /// Sets [`include`](Self::include).
    pub fn with_include(mut self, include: Vec<String>) -> Self {
        self.include = include;
        self
    }

    /// Sets [`exclude`](Self::exclude).
    pub fn with_exclude(mut self, exclude: Vec<String>) -> Self {
        self.exclude = exclude;
        self
    }

    /// Sets [`embeddings`](Self::embeddings).
    pub fn with_embeddings(mut self, codec: Option<CodecSpec>) -> Self {
        self.embeddings = codec;
        self
    }

    /// Sets [`convolutions`](Self::convolutions).
    pub fn with_convolutions(mut self, codec: Option<CodecSpec>) -> Self {
        self.convolutions = codec;
        self
    }

    /// Adds a rule after those that are there. It changes the codec; whether a weight is replaced is not for it to say.
    pub fn with_rule(mut self, pattern: &str, codec: CodecSpec) -> Self {
        self.rules.push(ReplaceRule { pattern: pattern.into(), codec });
        self
    }

    /// Sets [`seed`](Self::seed).
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets [`min_weights`](Self::min_weights).
    pub fn with_min_weights(mut self, min_weights: usize) -> Self {
        self.min_weights = min_weights;
        self
    }

    /// Sets [`allow_nothing`](Self::allow_nothing).
    pub fn with_allow_nothing(mut self, allow_nothing: bool) -> Self {
        self.allow_nothing = allow_nothing;
        self
    }

    /// Sets [`train_dictionaries`](Self::train_dictionaries).
    pub fn with_train_dictionaries(mut self, train_dictionaries: bool) -> Self {
        self.train_dictionaries = train_dictionaries;
        self
    }

    /// Sets [`dictionary`](Self::dictionary); the codec, which must be `matching`, is then
    /// [that of the dictionary](PatternDictionary::codec).
    ///
    /// # Example
    /// ```
    /// # #[cfg(feature = "flex")] {
    /// use burn::{nn::LinearConfig, tensor::Device};
    /// use pixel_core::{Matrix, PatternDictionary, Shape};
    /// use pixel_nn::{ReplaceConfig, replace_linear_layers};
    /// let model = LinearConfig::new(64, 64).init(&Device::flex());
    /// // Patterns that are learned from the weights, after those of the original.
    /// let (mut dictionary, tile) = (PatternDictionary::default(), Shape::new(8, 8)?);
    /// dictionary.generate_base_patterns(tile)?;
    /// let weight = Matrix::try_from(model.weight.val().transpose())?;
    /// dictionary.learn(tile, &weight.as_ref().tiles(tile), 16, 0)?;
    /// let config = ReplaceConfig::new("matching:2".parse()?).with_dictionary(dictionary);
    /// let (_, report) = replace_linear_layers(model, &config)?;
    /// println!("{}: {:.3}", report.layers[0].name, report.layers[0].relative_error);
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_dictionary(mut self, dictionary: impl Into<Arc<PatternDictionary>>) -> Self {
        self.dictionary = Some(dictionary.into());
        self
    }

    /// Sets [`calibration`](Self::calibration): errors of a weight are fed back so that the layer's outputs change
    /// least, for the inputs seen. A file of `pixel calibrate` or of [`calibrate`](crate::calibration::calibrate), or
    /// [`InputSums`](crate::calibration::InputSums) in memory. Weights are known by the names that
    /// [`weight_paths`](crate::calibration::weight_paths) gives; those it does not know are coded without, and one that
    /// knows none is an error.
    pub fn with_calibration(mut self, calibration: impl InputMoments + 'static) -> Self {
        self.calibration = Some(Arc::new(calibration));
        self
    }

    /// Sets [`synthesis`](Self::synthesis).
    pub fn with_synthesis(mut self, synthesis: SynthesisMode) -> Self {
        self.synthesis = synthesis;
        self
    }

    /// Compiles every expression and checks every codec.
    ///
    /// # Errors
    /// [`LayerError::Pattern`], [`LayerError::Config`].
    pub(super) fn compile(&self) -> Result<Selection<'_>, LayerError> {
        let rules = self.rules.iter().map(|rule| &rule.codec);
        let codecs = [&self.codec].into_iter().chain(&self.embeddings).chain(&self.convolutions).chain(rules);
        for codec in codecs {
            codec.build()?;
        }
        if let Some(dictionary) = &self.dictionary {
            dictionary.codec(&self.codec)?;
        }
        Ok(Selection {
            config: self,
            include: expressions(self.include.iter())?,
            exclude: expressions(self.exclude.iter())?,
            rules: expressions(self.rules.iter().map(|rule| &rule.pattern))?,
        })
    }
}

fn expressions<'a>(patterns: impl Iterator<Item = &'a String>) -> Result<Vec<Regex>, LayerError> {
    let compile = |pattern: &String| {
        Regex::new(pattern).map_err(|e| LayerError::Pattern { pattern: pattern.clone(), message: e.to_string() })
    };
    patterns.map(compile).collect()
}

/// A configuration whose expressions have been compiled.
pub(super) struct Selection<'a> {
    config: &'a ReplaceConfig,
    include: Vec<Regex>,
    exclude: Vec<Regex>,
    rules: Vec<Regex>,
}

impl Selection<'_> {
    /// Refuses an expression that matches none of the weights whose kind is asked for.
    pub(super) fn check_used(&self, found: &[Found]) -> Result<(), LayerError> {
        let unused = |expression: &&Regex| {
            !found.iter().any(|weight| self.class(weight).is_ok() && expression.is_match(&weight.path))
        };
        match self.include.iter().chain(&self.exclude).chain(&self.rules).find(unused) {
            None => Ok(()),
            Some(expression) => Err(LayerError::Unmatched { pattern: expression.to_string() }),
        }
    }

    /// The codec of a weight and whether it is over the dictionary, or why the weight stays dense.
    pub(super) fn decide(&self, weight: &Found) -> Result<(CodecSpec, bool), SkipReason> {
        let matches = |expressions: &[Regex]| expressions.iter().any(|expression| expression.is_match(&weight.path));
        let class = self.class(weight)?;
        if let Some(name) = &weight.reparameterized {
            return Err(SkipReason::Reparameterized { by: name.clone() });
        }
        if matches(&self.exclude) {
            return Err(SkipReason::Excluded);
        }
        if !self.include.is_empty() && !matches(&self.include) {
            return Err(SkipReason::NotIncluded);
        }
        if weight.dims.iter().product::<usize>() < self.config.min_weights {
            return Err(SkipReason::Small);
        }
        let rule = self.rules.iter().position(|expression| expression.is_match(&weight.path));
        let codec = rule.map_or(class, |rule| &self.config.rules[rule].codec);
        // Another codec of an embedding or a rule, or another size of tiles, knows nothing of the dictionary.
        let over = self.config.dictionary.as_ref().and_then(|dictionary| dictionary.codec(codec).ok());
        Ok(over.map_or_else(|| (codec.clone(), false), |codec| (codec, true)))
    }

    /// The codec of the weight's kind, or why that kind is kept.
    fn class(&self, weight: &Found) -> Result<&CodecSpec, SkipReason> {
        match &weight.kind {
            LayerKind::Linear => Ok(&self.config.codec),
            LayerKind::Embedding => self.config.embeddings.as_ref().ok_or(SkipReason::NotAsked),
            LayerKind::Convolution => self.config.convolutions.as_ref().ok_or(SkipReason::NotAsked),
            LayerKind::Other(container) => Err(SkipReason::OtherLayer { container: container.clone() }),
        }
    }
}
