//! Presets by the kind of layer, as the original's adaptive compressor had them.

use pixel_core::plan::{Recipe, Role, RoleDefault, Rule, Treatment};
use serde::Serialize;

/// What a weight does in a transformer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    /// Queries and keys of an attention.
    QueryKey,
    /// Values of an attention, and its output.
    ValueOutput,
    /// Query, key and value in one.
    Fused,
    /// The first layers of an MLP: gate, up, intermediate.
    FeedForwardIn,
    /// The last layer of an MLP.
    FeedForwardOut,
    /// Embeddings and output heads, as recipes know them.
    Embedding,
    /// Any other.
    Other,
}

/// The kinds that have a rule of their own, each with the names that BERT, GPT-2, Llama, NeoX, T5 and their like give
/// it.
const NAMES: [(LayerKind, &str); 5] = [
    (LayerKind::QueryKey, r"(^|\.)(query|key|q_proj|k_proj|q_lin|k_lin|q|k)\.weight$"),
    (
        LayerKind::ValueOutput,
        concat!(
            r"(^|\.)(value|v_proj|o_proj|out_proj|out_lin|v_lin|v|o)\.weight$",
            r"|attention\.(output\.)?dense\.weight$|attn\.c_proj\.weight$",
        ),
    ),
    (LayerKind::Fused, r"(^|\.)(qkv|qkv_proj|query_key_value|Wqkv|c_attn)\.weight$"),
    (
        LayerKind::FeedForwardIn,
        concat!(
            r"(^|\.)(gate_proj|up_proj|gate_up_proj|c_fc|fc1|lin1|wi|wi_0|wi_1|dense_h_to_4h)\.weight$",
            r"|intermediate\.dense\.weight$",
        ),
    ),
    (
        LayerKind::FeedForwardOut,
        r"(^|\.)(down_proj|fc2|lin2|wo|dense_4h_to_h)\.weight$|mlp\.c_proj\.weight$|layer\.\d+\.output\.dense\.weight$",
    ),
];

impl LayerKind {
    /// The kind of the weight called `name` in a checkpoint.
    ///
    /// # Example
    /// ```
    /// use pixel_experimental::LayerKind;
    /// assert_eq!(LayerKind::of("model.layers.3.self_attn.q_proj.weight"), LayerKind::QueryKey);
    /// assert_eq!(LayerKind::of("encoder.layer.0.attention.output.dense.weight"), LayerKind::ValueOutput);
    /// assert_eq!(LayerKind::of("encoder.layer.0.output.dense.weight"), LayerKind::FeedForwardOut);
    /// assert_eq!(LayerKind::of("model.embed_tokens.weight"), LayerKind::Embedding);
    /// ```
    pub fn of(name: &str) -> Self {
        let matches = |pattern: &str| regex::Regex::new(pattern).expect("a fixed expression").is_match(name);
        if Role::of(name).default_treatment() == RoleDefault::Embeddings {
            return Self::Embedding;
        }
        NAMES.into_iter().find(|(_, pattern)| matches(pattern)).map_or(Self::Other, |(kind, _)| kind)
    }
}

/// A choice of rates for all kinds of layers, by what a user wants.
///
/// | preset | queries, keys | values, outputs | fused | MLP | others | embeddings |
/// |---|---|---|---|---|---|---|
/// | high quality | 4 | 4 | 4 | 4 | 4 | `uniform:8` |
/// | balanced | 2.5 | 4 | 3 | 3 | 3 | `uniform:8` |
/// | maximal compression | 2 | 3 | 2.5 | 2 | 2 | `uniform:4` |
///
/// A rule of thumb, not measured against other such tables: where rates were allocated by measured losses, MiniLM's
/// values and outputs of attentions got more than its queries. With a calibration,
/// [`pixel_core::compressor::allocate_rates`] measures. Ranks are not part of a preset: where a low-rank part pays is a
/// property of the weight, and [`choose_ranks`](crate::choose_ranks) finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Preset {
    /// All but the same as the source.
    HighQuality,
    /// About three bits.
    Balanced,
    /// About two bits.
    MaxCompression,
}

impl Preset {
    /// Bits per weight of layers of `kind`, scales apart.
    pub const fn bits(self, kind: LayerKind) -> f64 {
        match (self, kind) {
            (Self::HighQuality | Self::Balanced, LayerKind::Embedding) => 8.0,
            (Self::MaxCompression, LayerKind::Embedding) => 4.0,
            (Self::HighQuality, _) | (Self::Balanced, LayerKind::ValueOutput) => 4.0,
            (Self::Balanced, LayerKind::QueryKey) | (Self::MaxCompression, LayerKind::Fused) => 2.5,
            (Self::Balanced, _) | (Self::MaxCompression, LayerKind::ValueOutput) => 3.0,
            (Self::MaxCompression, _) => 2.0,
        }
    }

    /// The preset as a recipe.
    pub fn recipe(self) -> Recipe {
        let mut recipe = Recipe::default();
        recipe.layers.bits = Some(self.bits(LayerKind::Other));
        recipe.embeddings.bits = Some(self.bits(LayerKind::Embedding));
        let differs = |&(kind, _): &(LayerKind, &str)| self.bits(kind) != self.bits(LayerKind::Other);
        recipe.rules = NAMES
            .into_iter()
            .filter(differs)
            .map(|(kind, pattern)| Rule {
                pattern: pattern.to_owned(),
                treatment: Treatment { bits: Some(self.bits(kind)), ..Default::default() },
            })
            .collect();
        recipe
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LayerKind::*;

    #[test]
    fn kinds_follow_from_the_names_of_real_checkpoints() {
        for (name, kind) in [
            ("encoder.layer.0.attention.self.query.weight", QueryKey),
            ("encoder.layer.0.attention.self.value.weight", ValueOutput),
            ("encoder.layer.0.attention.output.dense.weight", ValueOutput),
            ("encoder.layer.0.intermediate.dense.weight", FeedForwardIn),
            ("encoder.layer.11.output.dense.weight", FeedForwardOut),
            ("model.layers.0.self_attn.k_proj.weight", QueryKey),
            ("model.layers.0.self_attn.o_proj.weight", ValueOutput),
            ("model.layers.0.mlp.gate_proj.weight", FeedForwardIn),
            ("model.layers.0.mlp.down_proj.weight", FeedForwardOut),
            ("transformer.h.0.attn.c_attn.weight", Fused),
            ("transformer.h.0.attn.c_proj.weight", ValueOutput),
            ("transformer.h.0.mlp.c_fc.weight", FeedForwardIn),
            ("transformer.h.0.mlp.c_proj.weight", FeedForwardOut),
            ("gpt_neox.layers.0.attention.query_key_value.weight", Fused),
            ("gpt_neox.layers.0.attention.dense.weight", ValueOutput),
            ("gpt_neox.layers.0.mlp.dense_4h_to_h.weight", FeedForwardOut),
            ("decoder.block.0.layer.0.SelfAttention.q.weight", QueryKey),
            ("lm_head.weight", Embedding),
            ("pooler.dense.weight", Other),
        ] {
            assert_eq!(LayerKind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn a_recipe_says_what_the_table_says() {
        let names = ["q_proj", "v_proj", "c_attn", "up_proj", "pooler", "wte"].map(|name| format!("h.0.{name}.weight"));
        for (preset, bits) in [
            (Preset::HighQuality, [4.0, 4.0, 4.0, 4.0, 4.0, 8.0]),
            (Preset::Balanced, [2.5, 4.0, 3.0, 3.0, 3.0, 8.0]),
            (Preset::MaxCompression, [2.0, 3.0, 2.5, 2.0, 2.0, 4.0]),
        ] {
            let recipe = preset.recipe().compile().unwrap();
            let found = names.each_ref().map(|name| {
                let decision = recipe.decide(name, &[64, 64], true).unwrap();
                decision.coding().unwrap().codec.bits
            });
            assert_eq!(found, bits, "{preset:?}");
        }
    }
}
