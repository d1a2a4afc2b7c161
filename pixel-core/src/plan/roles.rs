//! What a tensor is for, by its name: the one table of what is coded by default, and how.
//!
//! Only what multiplies activations is coded as a layer. What chooses, counts, scales or remembers is kept: an error of
//! a router sends a token to other experts, one of a state-space parameter grows from token to token, one of a table of
//! positions shifts all of them.

use regex::RegexSet;
use serde::Serialize;
use std::sync::LazyLock;

/// What a tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Role {
    /// A matrix that multiplies activations, by a name that families of models give such matrices.
    Layer,
    /// Vectors of tokens and segments, and of learned positions that stand with them.
    Embedding,
    /// What makes predictions of the last hidden state.
    Head,
    /// What chooses among experts.
    Router,
    /// Parameters of a state-space model: decays, steps, short convolutions.
    StateSpace,
    /// Decays and mixes of a recurrent token mixer.
    TimeMixing,
    /// A table of positions by itself.
    Positions,
    /// Biases that depend on the distance of two tokens.
    RelativeBias,
    /// Codes, scales and zeros of tensors that are quantised already.
    Quantised,
    /// Factors of a low-rank adapter.
    Adapter,
    /// Gains of a norm.
    Norm,
    /// A name of no known family that ends as the weight of a layer does.
    UnknownLayer,
    /// Any other name.
    Other,
}

/// What is done with a role where no rule says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleDefault {
    /// Coded as the recipe's class `default` says.
    Layers,
    /// Coded as the recipe's class `embeddings` says.
    Embeddings,
    /// Kept.
    Keep,
}

/// The table: the first expression that is found in a name tells the role. [`Role::Other`], which matches whatever is
/// left, is the last.
pub const ROLES: [(Role, RoleDefault, &str); 13] = [
    (
        Role::Adapter,
        RoleDefault::Keep,
        r"(^|[._])lora_((A|B|embedding_[AB])(\.|$)|magnitude_vector)|\.ia3_l|(^|\.)adapter_",
    ),
    (
        Role::Quantised,
        RoleDefault::Keep,
        concat!(
            r"(^|\.)(qweight|qzeros|scales|g_idx|absmax|quant_map|quant_state|SCB|zero_point)(\.|$)",
            r"|(^|\.)(weight|input|output|k|v)_(scale(_inv|_2)?|zero_point|packed|shape|g_idx|global_scale)$",
        ),
    ),
    (
        Role::Router,
        RoleDefault::Keep,
        concat!(
            r"(^|\.)(router(\.(classifier|layer|gate|proj|wg))?|shared_expert_gate|expert_gate|gate_network|switch",
            r"|(mlp|moe|ffn|feed_forward|block_sparse_moe|mixer)\.gate(\.wg)?)\.weight$",
        ),
    ),
    (Role::StateSpace, RoleDefault::Keep, r"(^|\.)(A_log|D|dt_proj|dt_bias|x_proj|conv1d|ssm_(a|d|dt))(\.weight)?$"),
    (Role::TimeMixing, RoleDefault::Keep, r"(^|\.)time_(decay|first|faaaa|mix|maa|mixing)\w*"),
    (
        Role::RelativeBias,
        RoleDefault::Keep,
        r"relative_(attention_bias|position_(bias_table|index|key|value))|rel_pos_(h|w|bias)|(^|\.)alibi",
    ),
    (
        Role::Embedding,
        RoleDefault::Embeddings,
        r"(^|\.)(embed_(tokens|in|positions?)|(\w+_)?embeddings?|wte|wpe|shared|tok_embeddings)\.weight$",
    ),
    (
        Role::Positions,
        RoleDefault::Keep,
        r"(^|\.)(pos(ition(al)?)?_?(embed(ding)?s?|encodings?|table)|cls_token|mask_token|inv_freq|freqs_cis)$",
    ),
    (Role::Norm, RoleDefault::Keep, r"(?i)(^|\.)(\w*norm\d*|ln_?\w+|bn\d*)\.(weight|bias|scale|gamma|beta)$"),
    (
        Role::Head,
        RoleDefault::Embeddings,
        concat!(
            r"(^|\.)(lm_head|embed_out|output_projection|classifier(\.(dense|out_proj))?|score|qa_outputs",
            r"|cls\.predictions\.(decoder|transform\.dense)|cls\.seq_relationship|vocab_projector",
            r"|head|(\w+_)?head(\.\w+)?|heads\.\w+)\.weight$|^(output|(model\.)?proj_out)\.weight$",
        ),
    ),
    (
        Role::Layer,
        RoleDefault::Layers,
        concat!(
            r"(^|\.)(([qkvog]|qkv|q_[ab]|kv_[ab]|gate|up|down|gate_up|in|out|c|to|net\.0)_?proj(_with_mqa)?",
            r"|[qkvo]|w[qkvo123]|W(qkv|o|i)|wi(_[01])?|c_(attn|fc)|to_([qkv]|out\.0)|net\.[02](\.proj)?",
            r"|qkv|proj(_(in|mlp|out))?|query|key|value|receptance|gate|output|query_key_value|[qkv]_lin|out_lin",
            r"|lin_?[12]|fc_?\d",
            r"|dense(_h_to_4h|_4h_to_h|_act)?|linear_?\w?|(visual|text|image)_projection)\.weight$",
            r"|(^|\.)(in_proj_weight|weight_[ih]h_l\d+\w*|w[123]|v1|text_projection|visual\.proj)$",
        ),
    ),
    (Role::UnknownLayer, RoleDefault::Layers, r"(^|\.)weight$"),
    (Role::Other, RoleDefault::Keep, ""),
];

static EXPRESSIONS: LazyLock<RegexSet> = LazyLock::new(|| {
    RegexSet::new(ROLES.iter().map(|(_, _, expression)| expression)).expect("the expressions of the table")
});

impl Role {
    /// The role of the tensor `name`.
    ///
    /// # Example
    /// ```
    /// use pixel_core::plan::{Role, RoleDefault};
    /// let router = Role::of("model.layers.0.mlp.gate.weight");
    /// assert_eq!((router, router.default_treatment()), (Role::Router, RoleDefault::Keep));
    /// assert_eq!(Role::of("model.layers.0.mlp.gate_proj.weight"), Role::Layer);
    /// ```
    pub fn of(name: &str) -> Self {
        let first = EXPRESSIONS.matches(name).iter().next();
        first.map_or(Self::Other, |first| ROLES[first].0)
    }

    /// What is done with such tensors where no rule says otherwise.
    pub fn default_treatment(self) -> RoleDefault {
        let line = ROLES.iter().find(|(role, ..)| *role == self);
        line.expect("a line of the table for every role").1
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Layer => "layer",
            Self::Embedding => "embedding",
            Self::Head => "head",
            Self::Router => "router",
            Self::StateSpace => "state space",
            Self::TimeMixing => "time mixing",
            Self::Positions => "positions",
            Self::RelativeBias => "relative bias",
            Self::Quantised => "quantised already",
            Self::Adapter => "adapter",
            Self::Norm => "norm",
            Self::UnknownLayer => "unknown layer",
            Self::Other => "other",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_real_checkpoints_have_their_role() {
        use Role::*;
        for (role, names) in [
            (
                Layer,
                &[
                    "model.layers.0.self_attn.q_proj.weight",
                    "model.layers.0.mlp.gate_proj.weight",
                    "model.layers.0.mlp.experts.3.gate_proj.weight",
                    "model.layers.0.mlp.shared_expert.gate_proj.weight",
                    "encoder.layer.0.attention.output.dense.weight",
                    "transformer.h.0.attn.c_attn.weight",
                    "bert.pooler.dense.weight",
                    "model.layers.0.mixer.in_proj.weight",
                    "rwkv.blocks.0.attention.receptance.weight",
                    "decoder.block.0.layer.1.EncDecAttention.k.weight",
                    "visual_projection.weight",
                    "text_model.encoder.layers.0.self_attn.in_proj_weight",
                    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
                    "model.layers.0.block_sparse_moe.experts.0.w1.weight",
                    "gpt_neox.layers.0.attention.query_key_value.weight",
                    "transformer_blocks.0.attn.to_out.0.weight",
                    "single_transformer_blocks.0.proj_out.weight",
                    "blocks.0.ffn.net.0.proj.weight",
                    "blocks.0.attn.qkv.weight",
                    "transformer_blocks.0.norm1.linear.weight",
                    "lstm.weight_ih_l0_reverse",
                    "text_projection",
                ][..],
            ),
            (
                Embedding,
                &[
                    "model.embed_tokens.weight",
                    "transformer.wte.weight",
                    "transformer.wpe.weight",
                    "embeddings.word_embeddings.weight",
                    "bert.embeddings.position_embeddings.weight",
                    "gpt_neox.embed_in.weight",
                    "shared.weight",
                    "model.decoder.embed_positions.weight",
                    "tok_embeddings.weight",
                ],
            ),
            (
                Head,
                &[
                    "lm_head.weight",
                    "output.weight",
                    "classifier.weight",
                    "score.weight",
                    "qa_outputs.weight",
                    "cls.predictions.decoder.weight",
                    "proj_out.weight",
                    "model.head.weight",
                    "embed_out.weight",
                    "classifier.out_proj.weight",
                    "cls.seq_relationship.weight",
                    "vision_model.head.weight",
                    "model.proj_out.weight",
                ],
            ),
            (
                Router,
                &[
                    "model.layers.0.mlp.gate.weight",
                    "model.layers.0.block_sparse_moe.gate.weight",
                    "encoder.block.1.layer.1.mlp.router.classifier.weight",
                    "model.layers.0.feed_forward.router.weight",
                    "model.layers.0.mlp.shared_expert_gate.weight",
                ],
            ),
            (
                StateSpace,
                &[
                    "backbone.layers.0.mixer.A_log",
                    "backbone.layers.0.mixer.D",
                    "backbone.layers.0.mixer.dt_proj.weight",
                    "backbone.layers.0.mixer.x_proj.weight",
                    "backbone.layers.0.mixer.conv1d.weight",
                ],
            ),
            (
                TimeMixing,
                &[
                    "rwkv.blocks.0.attention.time_decay",
                    "rwkv.blocks.0.feed_forward.time_mix_key",
                    "blocks.0.att.time_faaaa",
                ],
            ),
            (Positions, &["vision_model.positional_embedding", "encoder.pos_embed", "vit.embeddings.cls_token"]),
            (
                RelativeBias,
                &[
                    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                    "layers.0.blocks.0.attn.relative_position_bias_table",
                ],
            ),
            (
                Quantised,
                &[
                    "model.layers.0.self_attn.q_proj.qweight",
                    "model.layers.0.self_attn.q_proj.scales",
                    "model.layers.0.self_attn.q_proj.qzeros",
                    "model.layers.0.self_attn.q_proj.g_idx",
                    "model.layers.0.self_attn.q_proj.weight_scale_inv",
                    "model.layers.0.self_attn.q_proj.weight_scale",
                    "model.layers.0.self_attn.q_proj.weight_packed",
                ],
            ),
            (
                Adapter,
                &[
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
                    "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight",
                ],
            ),
            (
                Norm,
                &[
                    "model.layers.0.input_layernorm.weight",
                    "model.norm.weight",
                    "transformer.h.0.ln_1.weight",
                    "embeddings.LayerNorm.bias",
                    "model.layers.0.self_attn.q_norm.weight",
                ],
            ),
            (UnknownLayer, &["tower.mystery.weight", "weight", "encoder.blocks.0.mixing_of_heads.weight"]),
            (
                Other,
                &[
                    "model.layers.0.mlp.bias",
                    "projection",
                    "logit_scale",
                    "latents",
                    "parametrizations.weight.original0",
                ],
            ),
        ] {
            for name in names {
                assert_eq!(Role::of(name), role, "{name}");
            }
        }
    }
}
