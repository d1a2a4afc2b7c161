//! What an attention is, and how its cache is held.

/// The shape and the rules of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Number of query heads.
    pub n_heads: usize,
    /// Number of key and value heads; query head `h` reads key head `h / (n_heads / n_kv_heads)`.
    pub n_kv_heads: usize,
    /// Length of one head.
    pub d_head: usize,
    /// Whether a query sees only keys at or before its own position.
    pub causal: bool,
    /// The number of keys that a query sees at most, its own among them; read where `causal` is set.
    pub window: Option<usize>,
    /// Whether a one is added to the denominator of the softmax.
    pub quiet_softmax: bool,
    /// What is added to the mean square of a query or key head before its root divides it; `None` without norms.
    pub norm_epsilon: Option<f64>,
    /// How keys and values are held.
    pub format: CacheFormat,
}

/// How the keys and values of a cache are held.
///
/// The narrow formats turn a head by a fixed [rotation](crate::Rotation), which spreads outliers over the head, and
/// round it to multiples of its largest magnitude / 127 or / 7, the scale.
///
/// # Accuracy
/// A value of a turned head is off by half a scale at most, so a head by `√d_head · scale / 2` in length. With the
/// error δ of the scores that follows from the keys, `‖q‖₁ · scale / (2·√d_head)` for a turned query q, the weights
/// change by factors between `exp(−2δ)` and `exp(2δ)`. For a few new tokens, a turned query is rounded to multiples of
/// its largest magnitude / 32639 (coarser in heads of more than 518 values), and with AVX-512 VBMI the weights of 64
/// keys to multiples of the largest, times its scale, / 32639: both are small beside what the format rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum CacheFormat {
    /// As they are.
    #[default]
    F32,
    /// 8 bits a value and a scale in F32 for each token and head.
    Bits8,
    /// 4 bits a value and a scale in F32 for each token and head.
    Bits4,
}

/// Why an [`AttentionSpec`] is refused.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionSpecError {
    /// A number that must not be zero is.
    #[error("{field} must not be zero")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// Query heads cannot be shared out.
    #[error("n_heads must be a multiple of n_kv_heads, got {n_heads} and {n_kv_heads}")]
    Heads {
        /// Number of query heads.
        n_heads: usize,
        /// Number of key heads.
        n_kv_heads: usize,
    },
    /// The values of a head do not fill words.
    #[error("a head of {d_head} values at {bits} bits does not fill words of 32 bits")]
    Words {
        /// Length of a head.
        d_head: usize,
        /// Bits of a value.
        bits: usize,
    },
    /// The epsilon is not a positive number.
    #[error("norm_epsilon must be in (0, ∞), got {0}")]
    Epsilon(f64),
}

impl AttentionSpec {
    /// Checks the numbers.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> Result<(), AttentionSpecError> {
        let Self { n_heads, n_kv_heads, d_head, window, norm_epsilon, format, .. } = *self;
        let numbers = [("n_heads", n_heads), ("n_kv_heads", n_kv_heads), ("d_head", d_head)];
        let mut numbers = numbers.into_iter().chain([("window", window.unwrap_or(1))]);
        if let Some((field, _)) = numbers.find(|(_, value)| *value == 0) {
            return Err(AttentionSpecError::Zero { field });
        }
        if !n_heads.is_multiple_of(n_kv_heads) {
            return Err(AttentionSpecError::Heads { n_heads, n_kv_heads });
        }
        if !format.fits(d_head) {
            return Err(AttentionSpecError::Words { d_head, bits: format.bits() });
        }
        match norm_epsilon.filter(|epsilon| !(*epsilon > 0.0 && epsilon.is_finite())) {
            Some(epsilon) => Err(AttentionSpecError::Epsilon(epsilon)),
            None => Ok(()),
        }
    }

    /// The rotation of the heads of narrow formats.
    #[cfg(feature = "burn")]
    pub(crate) fn rotation(&self) -> crate::Rotation {
        crate::Rotation::new(self.d_head, super::prepare::SEED)
    }

    /// Query heads that share a key head.
    pub const fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Numbers of a token before attention: its query heads, key heads and value heads.
    pub const fn d_qkv(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.d_head
    }
}

impl CacheFormat {
    /// Bits of a value.
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::Bits8 => 8,
            Self::Bits4 => 4,
        }
    }

    /// Whether heads of `d_head` values fill words of 32 bits.
    pub const fn fits(self, d_head: usize) -> bool {
        (d_head * self.bits()).is_multiple_of(32)
    }

    /// Words of 32 bits of one head of one token, without its scale.
    pub const fn words(self, d_head: usize) -> usize {
        d_head * self.bits() / 32
    }

    /// Bytes of one head of one token, its scale counted.
    pub const fn bytes(self, d_head: usize) -> usize {
        4 * (self.words(d_head) + self.scales())
    }

    /// Scales of one head of one token.
    pub const fn scales(self) -> usize {
        !matches!(self, Self::F32) as usize
    }

    /// The largest magnitude of a rounded value, and what is added to it so that it is stored without a sign.
    #[cfg(feature = "burn")]
    pub(crate) const fn range(self) -> (u8, u8) {
        (self.largest(), self.offset())
    }

    /// The largest magnitude of a rounded value.
    pub(super) const fn largest(self) -> u8 {
        match self {
            Self::F32 | Self::Bits8 => 127,
            Self::Bits4 => 7,
        }
    }

    /// What is added to a rounded value so that it is stored without a sign.
    pub(super) const fn offset(self) -> u8 {
        self.largest() + 1
    }
}
