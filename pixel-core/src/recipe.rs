//! The recipe: which tensor gets which codec.
//!
//! A recipe is a TOML (or JSON) file. Every weight falls into a class, `default` or `embeddings`, and takes that class's
//! treatment; an ordered list of rules may change it, and the first rule whose expression matches the tensor's name wins.
//!
//! ```
//! use pixel_core::recipe::Recipe;
//! let recipe = Recipe::from_toml(r#"
//!     seed = 7
//!     [default]
//!     codec = "trellis"
//!     bits = 2
//!     [embeddings]
//!     codec = "uniform"
//!     bits = 8
//!     [[rule]]
//!     match = '\.layers\.0\.'
//!     bits = 4
//!     [[rule]]
//!     match = 'router'
//!     keep = true
//! "#)?;
//! assert_eq!(recipe.rules.len(), 2);
//! # Ok::<(), pixel_core::ConfigError>(())
//! ```

use crate::codec::CodecSpec;
use crate::error::ConfigError;
use crate::feedback::FeedbackOptions;
use crate::low_rank::{FactorStorage, LowRankSpec};
use crate::matrix::Shape;
use crate::protected::check_count;
use regex::Regex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The expression that tells embeddings and output heads from the weights of layers, unless a recipe has another.
pub const EMBEDDINGS: &str =
    r"(^|\.)(embed_(tokens|in|out)|([a-z_]+_)?embeddings?|wte|wpe|lm_head|shared)\.weight$|^output\.weight$";

/// Matrices of fewer weights are kept as they are: an entry of the manifest takes some 400 bytes.
pub const MIN_WEIGHTS: usize = 1024;

/// How a tensor is treated. A field that is absent is taken from the class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Treatment {
    /// Store the tensor as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<bool>,
    /// The name of the codec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<String>,
    /// The rate in bits per weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits: Option<f64>,
    /// Options of the codec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, u32>>,
    /// Rotate the weight first; as the codec prefers if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotate: Option<bool>,
    /// Feed errors back through the statistics of the inputs, where a calibration has them; yes if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feedback: Option<bool>,
    /// How many columns to store beside the codes, fewer than the weight has; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<usize>,
    /// The rank of a low-rank part beside the codes, at most the weight's shorter side; none if absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// How the factors of that part are stored; `int8` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factors: Option<FactorStorage>,
}

/// One rule: tensors whose name matches are treated otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "RuleFields", into = "RuleFields")]
pub struct Rule {
    /// A regular expression, found anywhere in the tensor's name.
    pub pattern: String,
    /// What changes.
    pub treatment: Treatment,
}

/// A [`Rule`] as it is written: expression and treatment side by side. (Flattening would let unknown fields pass.)
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFields {
    #[serde(rename = "match")]
    pattern: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    keep: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    codec: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bits: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    options: Option<BTreeMap<String, u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotate: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    feedback: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    protect: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    factors: Option<FactorStorage>,
}

impl From<RuleFields> for Rule {
    fn from(fields: RuleFields) -> Self {
        let RuleFields { pattern, keep, codec, bits, options, rotate, feedback, protect, rank, factors } = fields;
        let treatment = Treatment { keep, codec, bits, options, rotate, feedback, protect, rank, factors };
        Self { pattern, treatment }
    }
}

impl From<Rule> for RuleFields {
    fn from(Rule { pattern, treatment }: Rule) -> Self {
        let Treatment { keep, codec, bits, options, rotate, feedback, protect, rank, factors } = treatment;
        Self { pattern, keep, codec, bits, options, rotate, feedback, protect, rank, factors }
    }
}

/// Which tensor gets which codec.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// The seed of the rotations.
    pub seed: u64,
    /// Matrices of fewer weights are kept, unless a rule names them.
    pub min_weights: usize,
    /// What error feedback adds to the diagonal of the inputs' second moments, in units of its mean.
    pub damping: f64,
    /// The regular expression that tells embeddings and output heads.
    pub embeddings_match: String,
    /// The treatment of the weights of layers.
    #[serde(rename = "default")]
    pub layers: Treatment,
    /// The treatment of embeddings and output heads.
    pub embeddings: Treatment,
    /// The rules, the first that matches wins.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
}

impl Default for Recipe {
    /// Layers at 2 bits by the trellis; embeddings and heads at 8 bits by the uniform codec, which costs half of F16
    /// and less than 10⁻⁴ of relative error.
    fn default() -> Self {
        let treatment =
            |codec: &str, bits| Treatment { codec: Some(codec.into()), bits: Some(bits), ..Default::default() };
        Self {
            seed: 0,
            min_weights: MIN_WEIGHTS,
            damping: FeedbackOptions::default().damping,
            embeddings_match: EMBEDDINGS.into(),
            layers: treatment("trellis", 2.0),
            embeddings: treatment("uniform", 8.0),
            rules: Vec::new(),
        }
    }
}

/// Why a tensor is stored as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepReason {
    /// It is no matrix of floats.
    NotAMatrix,
    /// It has fewer weights than the recipe's `min_weights`.
    Small,
    /// The recipe says so.
    Recipe,
}

impl std::fmt::Display for KeepReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotAMatrix => "no matrix of floats",
            Self::Small => "small",
            Self::Recipe => "as asked",
        })
    }
}

/// What is done with a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It is stored as it is.
    Keep(KeepReason),
    /// It is compressed.
    Compress {
        /// By this codec.
        codec: CodecSpec,
        /// After a rotation with the signs of this seed.
        rotation: Option<u64>,
        /// With error feedback, if the weight is calibrated.
        feedback: bool,
        /// With this many columns stored beside the codes.
        protect: usize,
        /// With a low-rank part beside the codes.
        low_rank: Option<LowRankSpec>,
    },
}

/// A recipe whose expressions have been compiled and whose codecs have been checked.
#[derive(Debug)]
pub struct CompiledRecipe {
    recipe: Recipe,
    embeddings: Regex,
    rules: Vec<Regex>,
}

impl Recipe {
    /// Reads a recipe from TOML.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] with line and column.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|e| ConfigError::Parse { what: "recipe".into(), message: e.to_string() })
    }

    /// Reads a recipe from JSON.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] with line and column.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        serde_json::from_str(text).map_err(|e| ConfigError::Parse { what: "recipe".into(), message: e.to_string() })
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe has no value that TOML lacks")
    }

    /// Compiles the expressions and checks every codec that a rule can lead to.
    ///
    /// # Errors
    /// [`ConfigError`] with the rule at fault.
    pub fn compile(self) -> Result<CompiledRecipe, ConfigError> {
        let expression = |what: String, text: &str| {
            Regex::new(text).map_err(|e| ConfigError::Parse {
                what: format!("{what}, expression '{text}'"),
                message: e.to_string(),
            })
        };
        let embeddings = expression("embeddings_match".into(), &self.embeddings_match)?;
        let rules = self.rules.iter().enumerate();
        let rules =
            rules.map(|(i, rule)| expression(format!("rule {}", i + 1), &rule.pattern)).collect::<Result<_, _>>()?;
        let compiled = CompiledRecipe { embeddings, rules, recipe: self };
        let recipe = &compiled.recipe;
        for class in [&recipe.layers, &recipe.embeddings] {
            compiled.decision(class, None)?;
        }
        if !(0.0..=1.0).contains(&recipe.damping) {
            let (value, range) = (recipe.damping.to_string(), "0 to 1".to_owned());
            return Err(ConfigError::Range { field: "damping", value, range });
        }
        for (i, rule) in recipe.rules.iter().enumerate() {
            // A rule that only changes, say, bits may suit one class alone; a name of the other is refused when it is
            // decided on.
            let of_embeddings = compiled.decision(&recipe.embeddings, Some(&rule.treatment));
            if let (Err(error), Err(_)) = (compiled.decision(&recipe.layers, Some(&rule.treatment)), of_embeddings) {
                let what = format!("rule {}, match '{}'", i + 1, rule.pattern);
                return Err(ConfigError::Parse { what, message: error.to_string() });
            }
        }
        Ok(compiled)
    }
}

impl CompiledRecipe {
    /// The recipe.
    pub const fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// How error feedback is done.
    pub fn feedback(&self) -> FeedbackOptions {
        FeedbackOptions { damping: self.recipe.damping, ..Default::default() }
    }

    /// Whether the tensor `name` is of the class of embeddings and output heads.
    pub fn is_embedding(&self, name: &str) -> bool {
        self.embeddings.is_match(name)
    }

    /// The rule that holds for the tensor `name`, if one does: the first that matches.
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().position(|rule| rule.is_match(name)).map(|i| &self.recipe.rules[i])
    }

    /// What is done with the tensor `name`, of `shape`, which holds floats or not.
    ///
    /// # Errors
    /// [`ConfigError`] if the rule that matches asks for a codec that cannot be built, as many columns are to be protected
    /// as there are or more, or the rank exceeds the shorter side.
    pub fn decide(&self, name: &str, shape: &[usize], is_float: bool) -> Result<Decision, ConfigError> {
        let recipe = &self.recipe;
        let num_weights: usize = shape.iter().product();
        if !is_float || shape.len() != 2 || num_weights == 0 {
            return Ok(Decision::Keep(KeepReason::NotAMatrix));
        }
        let rule = self.rule(name).map(|rule| &rule.treatment);
        if rule.is_none() && num_weights < recipe.min_weights {
            return Ok(Decision::Keep(KeepReason::Small));
        }
        let class = if self.embeddings.is_match(name) { &recipe.embeddings } else { &recipe.layers };
        let decision = self.decision(class, rule)?;
        if let (Decision::Compress { protect, low_rank, .. }, Ok(shape)) = (&decision, Shape::new(shape[0], shape[1])) {
            check_count("protect", *protect, shape.d_input())?;
            low_rank.map_or(Ok(()), |low_rank| low_rank.check(shape))?;
        }
        Ok(decision)
    }

    fn decision(&self, class: &Treatment, rule: Option<&Treatment>) -> Result<Decision, ConfigError> {
        let rule = rule.cloned().unwrap_or_default();
        // A rule that names a codec or a rate, but does not say `keep`, wants the tensor compressed.
        let names_codec = rule.codec.is_some() || rule.bits.is_some();
        if rule.keep.or(if names_codec { Some(false) } else { class.keep }) == Some(true) {
            return Ok(Decision::Keep(KeepReason::Recipe));
        }
        let fallback = Recipe::default().layers;
        // A class that names none is of the default's codec, and its options are that codec's.
        let class_codec = class.codec.clone().or(fallback.codec);
        let codec = rule.codec.clone().or(class_codec.clone()).unwrap_or_default();
        let same_codec = class_codec.as_ref() == Some(&codec);
        let bits = rule.bits.or(class.bits).or(fallback.bits).unwrap_or_default();
        let options = rule.options.or(class.options.clone().filter(|_| same_codec)).unwrap_or_default();
        let codec = CodecSpec { codec, bits, options };
        codec.build()?;
        let rotate = rule.rotate.or(class.rotate.filter(|_| same_codec)).unwrap_or(codec.family()?.rotates());
        let feedback = rule.feedback.or(class.feedback).unwrap_or(true);
        let protect = rule.protect.or(class.protect).unwrap_or(0);
        let rank = rule.rank.or(class.rank).filter(|&rank| rank > 0);
        let storage = rule.factors.or(class.factors).unwrap_or_default();
        let low_rank = rank.map(|rank| LowRankSpec { rank, storage });
        let rotation = rotate.then_some(self.recipe.seed);
        Ok(Decision::Compress { codec, rotation, feedback, protect, low_rank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(toml: &str, name: &str) -> Decision {
        Recipe::from_toml(toml).unwrap().compile().unwrap().decide(name, &[128, 128], true).unwrap()
    }

    fn spec(decision: Decision) -> String {
        match decision {
            Decision::Compress { codec, .. } => codec.to_string(),
            Decision::Keep(reason) => format!("{reason:?}"),
        }
    }

    #[test]
    fn a_class_without_a_codec_has_options_of_the_default_codec() {
        let recipe = "[default]\noptions = { window = 10 }\nrotate = false\n";
        let Decision::Compress { codec, rotation, .. } = decide(recipe, "q_proj.weight") else { panic!("kept") };
        assert_eq!((codec.to_string().as_str(), rotation), ("trellis:2:window=10", None));
        let recipe = format!("{recipe}[[rule]]\nmatch = 'q_proj'\ncodec = 'uniform'\n");
        assert_eq!(spec(decide(&recipe, "q_proj.weight")), "uniform:2");
    }

    #[test]
    fn names_of_real_checkpoints_fall_into_their_class() {
        for (name, expected) in [
            ("model.embed_tokens.weight", "uniform:8"),
            ("lm_head.weight", "uniform:8"),
            ("transformer.wte.weight", "uniform:8"),
            ("embeddings.word_embeddings.weight", "uniform:8"),
            ("bert.embeddings.position_embeddings.weight", "uniform:8"),
            ("gpt_neox.embed_in.weight", "uniform:8"),
            ("shared.weight", "uniform:8"),
            ("output.weight", "uniform:8"),
            ("encoder.layer.0.output.dense.weight", "trellis:2"),
            ("encoder.layer.0.attention.output.dense.weight", "trellis:2"),
            ("model.layers.0.self_attn.q_proj.weight", "trellis:2"),
        ] {
            assert_eq!(spec(decide("", name)), expected, "{name}");
        }
    }

    #[test]
    fn the_first_matching_rule_wins_and_the_class_fills_the_gaps() {
        let toml = r#"
            [default]
            codec = "trellis"
            bits = 3
            options = { window = 10 }
            [[rule]]
            match = 'v_proj'
            bits = 4
            [[rule]]
            match = 'layers\.0\.'
            codec = "additive"
            bits = 2
            [[rule]]
            match = 'router'
            keep = true
        "#;
        assert_eq!(spec(decide(toml, "layers.0.v_proj.weight")), "trellis:4:window=10");
        assert_eq!(spec(decide(toml, "layers.0.q_proj.weight")), "additive:2");
        assert_eq!(spec(decide(toml, "layers.1.q_proj.weight")), "trellis:3:window=10");
        assert_eq!(spec(decide(toml, "layers.1.router.weight")), "Recipe");
    }

    #[test]
    fn rules_and_classes_say_how_many_columns_are_protected() {
        let toml = r#"
            [default]
            protect = 4
            [[rule]]
            match = 'v_proj'
            protect = 0
            [[rule]]
            match = 'down_proj|wpe'
            codec = "additive"
            bits = 2
            protect = 127
        "#;
        let protect = |name: &str| match decide(toml, name) {
            Decision::Compress { protect, .. } => protect,
            keep => panic!("{keep:?}"),
        };
        assert_eq!(["v_proj", "q_proj", "down_proj", "wpe.weight", "wte.weight"].map(protect), [0, 4, 127, 127, 0]);
        // The width is not known before the tensor is.
        let recipe = Recipe::from_toml(toml).unwrap().compile().unwrap();
        let error = recipe.decide("down_proj", &[300, 127], true).unwrap_err().to_string();
        assert_eq!(error, "protect = 127 is outside 0..127, as the weight has 127 columns");
        assert_eq!(recipe.decide("down_proj", &[300], true).unwrap(), Decision::Keep(KeepReason::NotAMatrix));
    }

    #[test]
    fn rules_and_classes_say_the_rank() {
        let toml = r#"
            [default]
            rank = 4
            [[rule]]
            match = 'v_proj'
            rank = 0
            [[rule]]
            match = 'down_proj'
            rank = 100
            factors = "f16"
        "#;
        let low_rank = |name: &str| match decide(toml, name) {
            Decision::Compress { low_rank, .. } => low_rank.map(|spec| spec.to_string()),
            keep => panic!("{keep:?}"),
        };
        let found = ["v_proj", "q_proj", "down_proj", "wte.weight"].map(low_rank);
        assert_eq!(found, [None, Some("rank 4 in int8".into()), Some("rank 100 in f16".into()), None]);
        let recipe = Recipe::from_toml(toml).unwrap().compile().unwrap();
        let error = recipe.decide("down_proj", &[99, 127], true).unwrap_err().to_string();
        assert_eq!(error, "rank = 100 is outside 1..=99, as the weight is 99×127");
        assert!(Recipe::from_toml("[default]\nfactors = 'f8'").unwrap_err().to_string().contains("`int8` or `f16`"));
    }

    #[test]
    fn what_is_no_matrix_or_small_is_kept() {
        let recipe = Recipe::default().compile().unwrap();
        let keep = |shape: &[usize], float| recipe.decide("a.weight", shape, float).unwrap();
        assert_eq!(keep(&[128], true), Decision::Keep(KeepReason::NotAMatrix));
        assert_eq!(keep(&[128, 128], false), Decision::Keep(KeepReason::NotAMatrix));
        assert_eq!(keep(&[8, 8], true), Decision::Keep(KeepReason::Small));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |toml: &str| Recipe::from_toml(toml).and_then(Recipe::compile).map(|_| ()).unwrap_err().to_string();
        assert!(error("[default]\nbits = 2\nbit = 3").contains("unknown field `bit`"));
        assert!(error("[[rule]]\nmatch = '('\nkeep = true").contains("rule 1, expression '('"));
        assert!(error("[[rule]]\nmatch = 'x'\nbit = 3").contains("unknown field `bit`"));
        assert!(
            error("[[rule]]\nmatch = 'x'\nbits = 3.3").contains("rule 1, match 'x': codec trellis has no rate of 3.3")
        );
        assert!(error("[default]\ncodec = 'uniform'\nbits = 7").contains("no rate of 7"));
        assert!(error("damping = 2.0").contains("damping = 2 is outside 0 to 1"));
    }

    #[test]
    fn a_recipe_round_trips_through_toml_and_json() {
        let recipe = Recipe::from_toml("seed = 3\n[[rule]]\nmatch = 'x'\nbits = 4\nprotect = 2\nrank = 8").unwrap();
        assert_eq!(Recipe::from_toml(&recipe.to_toml()).unwrap(), recipe);
        assert_eq!(Recipe::from_json(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
    }
}
