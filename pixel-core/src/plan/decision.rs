//! What is done with each tensor: a recipe, applied to a name and a shape.

use super::recipe::{Recipe, Rule, Treatment};
use super::roles::{Role, RoleDefault};
use crate::codec::CodecSpec;
use crate::encode::{CodingSpec, FeedbackOptions, LowRankSpec};
use crate::error::ConfigError;
use crate::matrix::Shape;
use regex::Regex;
use serde::Serialize;

/// Why a tensor is stored unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KeepReason {
    /// It is not a matrix of floats.
    NotAMatrix,
    /// It has fewer weights than the recipe's `min_weights`.
    Small,
    /// The recipe says so.
    Recipe,
    /// What it is for: the [table of roles](super::ROLES) keeps such tensors unless a rule says `keep = false`.
    Role,
}

impl std::fmt::Display for KeepReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotAMatrix => "no matrix of floats",
            Self::Small => "small",
            Self::Recipe => "as asked",
            Self::Role => "for its role",
        })
    }
}

/// What is done with a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It is stored unchanged.
    Keep(KeepReason),
    /// It is compressed.
    Compress(CodingSpec),
}

impl Decision {
    /// How the tensor is coded, if it is compressed.
    pub const fn coding(&self) -> Option<&CodingSpec> {
        match self {
            Self::Keep(_) => None,
            Self::Compress(spec) => Some(spec),
        }
    }
}

/// A recipe whose expressions have been compiled and whose codecs have been checked.
#[derive(Debug)]
pub struct CompiledRecipe {
    recipe: Recipe,
    embeddings: Option<Regex>,
    include: Vec<Regex>,
    exclude: Vec<Regex>,
    rules: Vec<Regex>,
}

impl CompiledRecipe {
    /// Compiles the expressions and checks every codec that a rule can select.
    pub(super) fn new(recipe: Recipe) -> Result<Self, ConfigError> {
        let rules: Vec<&String> = recipe.rules.iter().map(|rule| &rule.pattern).collect();
        let compiled = Self {
            embeddings: match &recipe.embeddings_match {
                None => None,
                Some(text) => Some(expression("embeddings_match", text)?),
            },
            include: expressions("include", &recipe.include)?,
            exclude: expressions("exclude", &recipe.exclude)?,
            rules: expressions("rule", rules)?,
            recipe,
        };
        let recipe = &compiled.recipe;
        FeedbackOptions { damping: recipe.damping, ..FeedbackOptions::DEFAULT }.check()?;
        for class in Class::ALL {
            compiled.resolve(class, None)?;
        }
        for (i, rule) in recipe.rules.iter().enumerate() {
            // A rule that only changes, say, bits may suit one class only; tensors of the other are refused when they
            // are decided on.
            let of_embeddings = compiled.resolve(Class::Embeddings, Some(&rule.treatment));
            if let (Err(source), Err(_)) = (compiled.resolve(Class::Layers, Some(&rule.treatment)), of_embeddings) {
                let (rule, pattern) = (i + 1, rule.pattern.clone());
                return Err(ConfigError::Rule { rule, pattern, error: Box::new(source) });
            }
        }
        Ok(compiled)
    }

    /// The recipe.
    pub const fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Whether the tensor `name` is of the class of embeddings and output heads.
    pub fn is_embedding(&self, name: &str) -> bool {
        self.class(name) == Some(Class::Embeddings)
    }

    /// The class of the tensor `name`; `None` if its role is kept.
    fn class(&self, name: &str) -> Option<Class> {
        if self.embeddings.as_ref().is_some_and(|embeddings| embeddings.is_match(name)) {
            return Some(Class::Embeddings);
        }
        match Role::of(name).default_treatment() {
            // The recipe's own expression takes the place of the table's.
            RoleDefault::Embeddings if self.embeddings.is_none() => Some(Class::Embeddings),
            RoleDefault::Embeddings | RoleDefault::Layers => Some(Class::Layers),
            RoleDefault::Keep => None,
        }
    }

    /// The recipe's treatment of the class of the tensor `name`; that of layers for one that is kept by default.
    pub fn class_treatment(&self, name: &str) -> &Treatment {
        self.class(name).unwrap_or(Class::Layers).of(&self.recipe)
    }

    /// The rule that applies to the tensor `name`, if one does: the first that matches.
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rule_index(name).map(|i| &self.recipe.rules[i])
    }

    /// The place of that rule.
    pub(super) fn rule_index(&self, name: &str) -> Option<usize> {
        self.rules.iter().position(|rule| rule.is_match(name))
    }

    /// Every rule's expression, with its name for messages and its place.
    pub(super) fn rule_expressions(&self) -> impl Iterator<Item = (String, &Regex, usize)> {
        self.rules.iter().enumerate().map(|(i, rule)| (format!("rule {}", i + 1), rule, i))
    }

    /// All expressions, with their names for messages.
    pub(super) fn expressions(&self) -> impl Iterator<Item = (String, &Regex)> {
        let numbered = |what: &'static str, expressions: &'_ [Regex]| -> Vec<String> {
            (1..=expressions.len()).map(|i| format!("{what} {i}")).collect()
        };
        let lists = [("include", &self.include), ("exclude", &self.exclude), ("rule", &self.rules)];
        let listed = lists.into_iter().flat_map(move |(what, list)| numbered(what, list).into_iter().zip(list));
        self.embeddings.iter().map(|embeddings| ("embeddings_match".to_owned(), embeddings)).chain(listed)
    }

    /// What is done with the tensor `name`, of `shape`, which holds floats or not. A part that the tensor is too small
    /// for is left out: a low-rank part of a rank beyond its shorter side, more protected columns than it has.
    ///
    /// # Errors
    /// [`ConfigError`] if the rule that matches asks for a codec that cannot be built.
    pub fn decide(&self, name: &str, shape: &[usize], is_float: bool) -> Result<Decision, ConfigError> {
        self.decide_with_remarks(name, shape, is_float).map(|(decision, _)| decision)
    }

    /// [`decide`](Self::decide), and what was asked for and left out.
    pub(super) fn decide_with_remarks(
        &self,
        name: &str,
        shape: &[usize],
        is_float: bool,
    ) -> Result<(Decision, Vec<Omission>), ConfigError> {
        let keep = |reason| Ok((Decision::Keep(reason), Vec::new()));
        let &[d_output, d_input] = shape else { return keep(KeepReason::NotAMatrix) };
        let Ok(matrix) = Shape::new(d_output, d_input) else { return keep(KeepReason::NotAMatrix) };
        if !is_float {
            return keep(KeepReason::NotAMatrix);
        }
        let matches = |expressions: &[Regex]| expressions.iter().any(|expression| expression.is_match(name));
        let is_included = matches(&self.include);
        let rule = self.rule(name).map(|rule| &rule.treatment);
        let is_kept = rule.is_some_and(|rule| rule.keep == Some(true));
        if matches(&self.exclude) || is_kept || !(self.include.is_empty() || is_included) {
            return keep(KeepReason::Recipe);
        }
        // A rule for many names does not mean what errors would ruin; one that says so does, and whoever names a tensor
        // of no known role knows what it is.
        let is_meant = rule.is_some_and(|rule| rule.keep == Some(false))
            || Role::of(name) == Role::Other && (is_included || rule.is_some_and(Treatment::names_codec));
        let class = match self.class(name) {
            Some(class) => class,
            None if is_meant => Class::Layers,
            None => return keep(KeepReason::Role),
        };
        if rule.is_none() && !is_included && matrix.num_weights() < self.recipe.min_weights {
            return keep(KeepReason::Small);
        }
        match self.resolve(class, rule)? {
            Decision::Compress(spec) => {
                let (spec, omitted) = fit(spec, matrix);
                spec.check(matrix)?;
                Ok((Decision::Compress(spec), omitted))
            }
            decision => Ok((decision, Vec::new())),
        }
    }

    /// The treatment of a class, changed by a rule: what neither says is the default of the class.
    fn resolve(&self, class: Class, rule: Option<&Treatment>) -> Result<Decision, ConfigError> {
        let (defaults, rule) = (Recipe::default(), rule.cloned().unwrap_or_default());
        let (class, fallback) = (class.of(&self.recipe), class.of(&defaults));
        // A rule that names a codec or a rate, but does not say `keep`, wants the tensor compressed.
        if rule.keep.or(if rule.names_codec() { Some(false) } else { class.keep }) == Some(true) {
            return Ok(Decision::Keep(KeepReason::Recipe));
        }
        // A class that names no codec is of the default's, and its options are that codec's.
        let class_codec = class.codec.as_ref().or(fallback.codec.as_ref());
        let codec = rule.codec.as_ref().or(class_codec).cloned().unwrap_or_default();
        let same_codec = class_codec == Some(&codec);
        let bits = rule.bits.or(class.bits).or(fallback.bits).unwrap_or_default();
        let options = rule.options.or(class.options.clone().filter(|_| same_codec)).unwrap_or_default();
        let codec = CodecSpec { codec, bits, options };
        codec.build()?;
        let rotate = rule.rotate.or(class.rotate.filter(|_| same_codec)).unwrap_or(codec.family()?.rotates());
        let feedback = rule.feedback.or(class.feedback).unwrap_or(true);
        let rank = rule.rank.or(class.rank).filter(|&rank| rank > 0);
        let storage = rule.factors.or(class.factors).unwrap_or_default();
        let options = FeedbackOptions { damping: self.recipe.damping, ..FeedbackOptions::DEFAULT };
        let spec = CodingSpec::new(codec)
            .with_rotation(rotate.then_some(self.recipe.seed))
            .with_protect(rule.protect.or(class.protect).unwrap_or(0))
            .with_low_rank(rank.map(|rank| LowRankSpec { rank, storage }))
            .with_feedback(feedback.then_some(options));
        Ok(Decision::Compress(spec))
    }
}

/// What a tensor is, before any rule is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Layers,
    Embeddings,
}

impl Class {
    const ALL: [Self; 2] = [Self::Layers, Self::Embeddings];

    const fn of(self, recipe: &Recipe) -> &Treatment {
        match self {
            Self::Layers => &recipe.layers,
            Self::Embeddings => &recipe.embeddings,
        }
    }
}

/// A part of a request for which a tensor is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Omission {
    /// A low-rank part of this rank.
    Rank(usize),
    /// This many protected columns.
    Protect(usize),
}

impl std::fmt::Display for Omission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rank(rank) => write!(f, "a low-rank part of rank {rank}"),
            Self::Protect(columns) => write!(f, "{columns} protected columns"),
        }
    }
}

/// `spec` without what a weight of `shape` is too small for.
fn fit(mut spec: CodingSpec, shape: Shape) -> (CodingSpec, Vec<Omission>) {
    let mut omitted = Vec::new();
    // Codes need a column.
    if spec.protect >= shape.d_input() && spec.protect > 0 {
        omitted.push(Omission::Protect(spec.protect));
        spec = spec.with_protect(0);
    }
    if let Some(part) = spec.low_rank.filter(|part| part.rank > shape.d_input().min(shape.d_output())) {
        omitted.push(Omission::Rank(part.rank));
        spec = spec.with_low_rank(None);
    }
    (spec, omitted)
}

/// Compiles one expression; `what` names its place.
fn expression(what: &str, text: &str) -> Result<Regex, ConfigError> {
    Regex::new(text).map_err(|error| ConfigError::Parse {
        what: format!("{what}, expression '{text}'"),
        message: error.to_string(),
    })
}

/// Compiles the expressions of a list, each by its place.
fn expressions<'a>(what: &str, texts: impl IntoIterator<Item = &'a String>) -> Result<Vec<Regex>, ConfigError> {
    texts.into_iter().enumerate().map(|(i, text)| expression(&format!("{what} {}", i + 1), text)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(toml: &str, name: &str) -> Decision {
        Recipe::from_toml(toml).unwrap().compile().unwrap().decide(name, &[128, 128], true).unwrap()
    }

    fn spec(decision: Decision) -> String {
        match decision {
            Decision::Compress(spec) => spec.codec.to_string(),
            Decision::Keep(reason) => format!("{reason:?}"),
        }
    }

    #[test]
    fn a_class_without_a_codec_has_options_of_the_default_codec() {
        let recipe = "[default]\noptions = { beam = 10 }\nrotate = false\n";
        let Decision::Compress(found) = decide(recipe, "q_proj.weight") else { panic!("kept") };
        assert_eq!((found.codec.to_string().as_str(), found.rotation), ("lapped:2:beam=10", None));
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
            ("encoder.layer.0.output.dense.weight", "lapped:2"),
            ("encoder.layer.0.attention.output.dense.weight", "lapped:2"),
            ("model.layers.0.self_attn.q_proj.weight", "lapped:2"),
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
            Decision::Compress(spec) => spec.protect,
            keep => panic!("{keep:?}"),
        };
        assert_eq!(
            ["v_proj.weight", "q_proj.weight", "down_proj.weight", "wpe.weight", "wte.weight"].map(protect),
            [0, 4, 127, 127, 0]
        );
        // The width is not known before the tensor is.
        let recipe = Recipe::from_toml(toml).unwrap().compile().unwrap();
        let decide = |shape: [usize; 2]| recipe.decide_with_remarks("down_proj.weight", &shape, true).unwrap();
        let (decision, omitted) = decide([300, 127]);
        assert_eq!((decision.coding().unwrap().protect, omitted), (0, vec![Omission::Protect(127)]));
        let (decision, omitted) = decide([300, 128]);
        assert_eq!((decision.coding().unwrap().protect, omitted), (127, vec![]));
        assert_eq!(recipe.decide("down_proj.weight", &[300], true).unwrap(), Decision::Keep(KeepReason::NotAMatrix));
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
            Decision::Compress(spec) => spec.low_rank.map(|spec| spec.to_string()),
            keep => panic!("{keep:?}"),
        };
        let found = ["v_proj.weight", "q_proj.weight", "down_proj.weight", "wte.weight"].map(low_rank);
        assert_eq!(found, [None, Some("rank 4 in int8".into()), Some("rank 100 in f16".into()), None]);
        let recipe = Recipe::from_toml(toml).unwrap().compile().unwrap();
        let decide = |shape: [usize; 2]| recipe.decide_with_remarks("down_proj.weight", &shape, true).unwrap();
        let (decision, omitted) = decide([99, 127]);
        assert_eq!((decision.coding().unwrap().low_rank, omitted), (None, vec![Omission::Rank(100)]));
        assert!(decide([100, 127]).0.coding().unwrap().low_rank.is_some());
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
    fn a_part_of_the_embeddings_table_leaves_the_rest_at_the_embeddings_defaults() {
        for (table, expected) in [
            ("protect = 2", "uniform:8"),
            ("bits = 6", "uniform:6"),
            ("options = { group = 32 }", "uniform:8:group=32"),
            ("keep = false", "uniform:8"),
            ("codec = 'trellis'\nbits = 3", "trellis:3"),
        ] {
            let toml = format!("[embeddings]\n{table}");
            assert_eq!(spec(decide(&toml, "wte.weight")), expected, "{table}");
            assert_eq!(spec(decide(&toml, "q_proj.weight")), "lapped:2", "{table}");
        }
        assert_eq!(spec(decide("[default]\nbits = 3", "wte.weight")), "uniform:8");
    }

    #[test]
    fn nothing_is_compressed_that_is_not_included_whatever_rules_say() {
        let toml = r#"
            include = ['layers\.0\.', 'tiny']
            exclude = ['k_proj']
            [[rule]]
            match = '[qk]_proj'
            bits = 3
            [[rule]]
            match = 'v_proj'
            keep = false
        "#;
        for (name, expected) in [
            ("layers.0.q_proj.weight", "lapped:3"),
            ("layers.0.v_proj.weight", "lapped:2"),
            ("layers.1.q_proj.weight", "Recipe"),
            ("layers.1.v_proj.weight", "Recipe"),
            ("layers.0.k_proj.weight", "Recipe"),
            ("wte.weight", "Recipe"),
        ] {
            assert_eq!(spec(decide(toml, name)), expected, "{name}");
        }
        let recipe = Recipe::from_toml(toml).unwrap().compile().unwrap();
        assert_eq!(spec(recipe.decide("tiny.weight", &[8, 8], true).unwrap()), "lapped:2");
    }
}
