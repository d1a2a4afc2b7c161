//! An attention with what a transformer has around it, in as few operations as its parts allow.

use super::{CacheFormat, KeyValueCache, PIXELAttention};
use crate::attention::AttentionInput;
use crate::projection::Projection;
use crate::step::{FeedForward, Norm, ProjectionStep};
use burn::tensor::{Bool, Tensor, assert_shape};
use pixel_core::backend::{AttentionCache, AttentionInputs, attend};

/// `post(x + attention(norm(x)))`, the norms optional, and an MLP behind it if one is [given](Self::with_feed_forward):
/// three operations where the projections are patterns, the projections of query, key and value,
/// [attention](pixel_core::attention) over the cache, and what follows it.
///
/// Made by [`PIXELAttention::block`].
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::nn::RmsNormConfig;
/// use burn::tensor::{Device, Tensor};
/// use pixel_nn::attention::{KeyValueCache, PIXELAttentionConfig};
/// let device = Device::flex();
/// let attention = PIXELAttentionConfig::new(64, 4).with_causal(true).init(&device);
/// let (norm, mut cache) = (RmsNormConfig::new(64).init(&device), KeyValueCache::new());
/// let x = Tensor::<3>::ones([1, 3, 64], &device);
/// assert_eq!(attention.block().with_norm(&norm).forward_cached(x, None, &mut cache).dims(), [1, 3, 64]);
/// # }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct AttentionBlock<'a> {
    attention: &'a PIXELAttention,
    norm: Option<Norm<'a>>,
    has_residual: bool,
    post_norm: Option<Norm<'a>>,
    feed_forward: Option<FeedForward<'a>>,
}

impl<'a> AttentionBlock<'a> {
    /// The attention and nothing around it.
    pub(super) fn of(attention: &'a PIXELAttention) -> Self {
        Self { attention, norm: None, has_residual: false, post_norm: None, feed_forward: None }
    }

    pub(super) fn with_residual(self) -> Self {
        Self { has_residual: true, ..self }
    }

    /// With a norm of the input.
    pub fn with_norm(self, norm: impl Into<Norm<'a>>) -> Self {
        Self { norm: Some(norm.into()), ..self }
    }

    /// With a norm of the sum.
    pub fn with_post_norm(self, norm: impl Into<Norm<'a>>) -> Self {
        Self { post_norm: Some(norm.into()), ..self }
    }

    /// With an MLP of the result: a whole layer of a transformer.
    pub fn with_feed_forward(self, feed_forward: FeedForward<'a>) -> Self {
        Self { feed_forward: Some(feed_forward), ..self }
    }

    /// Reads a text; `mask_pad` hides keys from every query, true = padding.
    ///
    /// # Shapes
    /// - x, output: `[batch, seq, d_model]`
    /// - mask_pad: `[batch, seq]`
    ///
    /// # Panics
    /// If a shape is another.
    pub fn forward(&self, x: Tensor<3>, mask_pad: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.check(&x, mask_pad.as_ref());
        let attention = self.attention;
        // Dropout needs the weights.
        if attention.dropout.prob > 0.0 && x.is_autodiff() {
            let normed = self.norm.map_or_else(|| x.clone(), |norm| norm.forward(x.clone()));
            let input = mask_pad.into_iter().fold(AttentionInput::self_attn(normed), AttentionInput::mask_pad);
            return self.end(x, |_| attention.attend(input).context, None);
        }
        let [batch, seq, _] = x.dims();
        self.end(
            x,
            |x| {
                let spec = attention.spec(CacheFormat::F32);
                let qkv = self.heads(x);
                let cache = AttentionCache::new(&spec, batch, seq, &qkv.device());
                let inputs = AttentionInputs { padding: mask_pad, ..self.inputs(&qkv, 0) };
                attend(&spec, qkv, inputs, cache, 0).0
            },
            Some(&attention.output),
        )
    }

    /// Reads new tokens, which are added to `cache`, of which `mask_pad` may be padding. There is no dropout.
    ///
    /// # Shapes
    /// - x: `[batch, seq, d_model]`, the tokens at positions `cache.len()..cache.len() + seq`
    /// - mask_pad: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`
    ///
    /// # Panics
    /// As [`PIXELAttention::forward_cached`].
    pub fn forward_cached(
        &self,
        x: Tensor<3>,
        mask_pad: Option<Tensor<2, Bool>>,
        cache: &mut KeyValueCache,
    ) -> Tensor<3> {
        let attention = self.attention;
        assert!(attention.causal, "forward_cached needs causal attention, got causal = false");
        self.check(&x, mask_pad.as_ref());
        self.end(
            x,
            |x| {
                let qkv = self.heads(x);
                let inputs = self.inputs(&qkv, cache.len());
                cache.attend(&attention.spec(cache.format()), qkv, inputs, mask_pad)
            },
            Some(&attention.output),
        )
    }

    fn check(&self, x: &Tensor<3>, mask_pad: Option<&Tensor<2, Bool>>) {
        assert_shape!(x, [_, _, self.attention.d_model]);
        let [batch, seq, _] = x.dims();
        if let Some(mask) = mask_pad {
            assert_shape!(mask, [batch, seq]);
        }
    }

    /// Query, key and value heads, `[batch, seq, (n_heads + 2 · n_kv_heads) · d_head]`.
    fn heads(&self, x: Tensor<3>) -> Tensor<3> {
        let PIXELAttention { query, key, value, .. } = self.attention;
        let step = ProjectionStep::new([query, key, value]);
        self.norm.iter().fold(step, |step, norm| step.with_norm(*norm)).forward(x)
    }

    /// Positions and norms of heads whose first token is at position `start`.
    fn inputs(&self, qkv: &Tensor<3>, start: usize) -> AttentionInputs {
        let PIXELAttention { rotary, query_norm, key_norm, .. } = self.attention;
        let norms = query_norm.as_ref().zip(key_norm.as_ref());
        AttentionInputs {
            rotary: rotary.as_ref().map(|rotary| rotary.window(start, qkv.dims()[1], &qkv.device())),
            norms: norms.map(|(query, key)| (query.gamma.val(), key.gamma.val())),
            padding: None,
        }
    }

    /// What follows `attend`: the output projection, if it is not done yet, the residual, the norm and the MLP.
    fn end(&self, x: Tensor<3>, attend: impl FnOnce(Tensor<3>) -> Tensor<3>, output: Option<&Projection>) -> Tensor<3> {
        let residual = self.has_residual.then(|| x.clone());
        let context = attend(x);
        let Some(output) = output else {
            let sum = residual.into_iter().fold(context, |context, residual| residual + context);
            let y = self.post_norm.map_or(sum.clone(), |norm| norm.forward(sum));
            return self.feed_forward.map_or(y.clone(), |mlp| mlp.forward(y));
        };
        let step = ProjectionStep::new([output]);
        let step = residual.into_iter().fold(step, ProjectionStep::with_residual);
        let step = self.post_norm.iter().fold(step, |step, norm| step.with_post_norm(*norm));
        match self.feed_forward {
            None => step.forward(context),
            Some(mlp) => mlp.behind(step, context),
        }
    }
}
