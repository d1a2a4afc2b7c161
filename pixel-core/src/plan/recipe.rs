//! The recipe: which tensor gets which codec.
//!
//! A recipe is a TOML (or JSON) file. Every weight falls into a class, `default` or `embeddings`, and takes that
//! class's treatment; an ordered list of rules may change it, and the first rule whose expression matches the tensor's
//! name wins.
//!
//! ```
//! use pixel_core::plan::Recipe;
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

use super::decision::CompiledRecipe;
use crate::encode::FactorStorage;
use crate::error::ConfigError;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Matrices of fewer weights are kept unchanged: an entry of the manifest takes some 400 bytes.
pub const MIN_WEIGHTS: usize = 1024;

/// How a tensor is treated. A field that is absent is taken from the class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Treatment {
    /// Store the tensor unchanged.
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
    /// How many columns to store in F16 in place of codes, fewer than the weight has; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protect: Option<usize>,
    /// The rank of a low-rank part in addition to the codes, at most the weight's shorter side; none if absent or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<usize>,
    /// How the factors of that part are stored; `int8` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factors: Option<FactorStorage>,
}

impl Treatment {
    /// Whether it says how, and so that, a tensor is to be compressed.
    pub(super) const fn names_codec(&self) -> bool {
        self.codec.is_some() || self.bits.is_some()
    }
}

/// One rule: tensors whose name matches are treated differently.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rule {
    /// A regular expression, found anywhere in the tensor's name.
    #[serde(rename = "match")]
    pub pattern: String,
    /// What changes.
    #[serde(flatten)]
    pub treatment: Treatment,
}

/// A rule as it is written: expression and treatment side by side. Serde's own flattening would let unknown fields
/// pass.
impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut fields = serde_json::Map::deserialize(deserializer)?;
        let pattern = fields.remove("match").ok_or_else(|| D::Error::missing_field("match"))?;
        let pattern = String::deserialize(pattern).map_err(|e| D::Error::custom(format_args!("match: {e}")))?;
        let treatment = Treatment::deserialize(serde_json::Value::Object(fields)).map_err(D::Error::custom)?;
        Ok(Self { pattern, treatment })
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
    /// What error feedback adds to the diagonal of the inputs' second moments, in units of its mean; if absent, what
    /// the calibration's amount of text asks for (see [`FeedbackOptions::damping`](crate::encode::FeedbackOptions)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<f64>,
    /// Regular expressions of which one has to match the name of every tensor that is compressed, whatever rules say;
    /// all names are meant if there are none. What one matches is never kept for being small.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Regular expressions of tensors that are kept, whatever rules say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// A regular expression of the tensors that are treated as embeddings and output heads, in place of those that the
    /// [table of roles](super::ROLES) takes for such.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embeddings_match: Option<String>,
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
    /// Layers at 2 bits by the [default codec](crate::codec::DEFAULT); embeddings and heads at 8 bits by the uniform
    /// codec, which costs half of F16 and less than 10⁻⁴ of relative error.
    fn default() -> Self {
        let treatment =
            |codec: &str, bits| Treatment { codec: Some(codec.into()), bits: Some(bits), ..Default::default() };
        Self {
            seed: 0,
            min_weights: MIN_WEIGHTS,
            damping: None,
            include: Vec::new(),
            exclude: Vec::new(),
            embeddings_match: None,
            layers: treatment(crate::codec::DEFAULT, 2.0),
            embeddings: treatment("uniform", 8.0),
            rules: Vec::new(),
        }
    }
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

    /// Compiles the expressions and checks every codec that a rule can select.
    ///
    /// # Errors
    /// [`ConfigError`] with the rule at fault.
    pub fn compile(self) -> Result<CompiledRecipe, ConfigError> {
        CompiledRecipe::new(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named() {
        let error = |toml: &str| Recipe::from_toml(toml).and_then(Recipe::compile).map(|_| ()).unwrap_err().to_string();
        assert!(error("[default]\nbits = 2\nbit = 3").contains("unknown field `bit`"));
        assert!(error("[[rule]]\nmatch = '('\nkeep = true").contains("rule 1, expression '('"));
        assert!(error("[[rule]]\nmatch = 'x'\nbit = 3").contains("unknown field `bit`"));
        assert!(
            error("[[rule]]\nmatch = 'x'\nbits = 3.3").contains("rule 1, match 'x': codec lapped has no rate of 3.3")
        );
        assert!(error("[default]\ncodec = 'uniform'\nbits = 7").contains("no rate of 7"));
        assert!(error("damping = 2000.0").contains("damping = 2000 is outside 0 to 1000"));
        assert!(error("include = ['(']").contains("include 1, expression '('"));
        assert!(error("[[rule]]\nbits = 2").contains("missing field `match`"));
        assert!(error("[[rule]]\nmatch = 3\nbits = 2").contains("match: invalid type: integer"));
    }

    #[test]
    fn a_recipe_round_trips_through_toml_and_json() {
        let recipe = Recipe::from_toml("seed = 3\n[[rule]]\nmatch = 'x'\nbits = 4\nprotect = 2\nrank = 8").unwrap();
        assert_eq!(Recipe::from_toml(&recipe.to_toml()).unwrap(), recipe);
        assert_eq!(Recipe::from_json(&serde_json::to_string(&recipe).unwrap()).unwrap(), recipe);
    }
}
