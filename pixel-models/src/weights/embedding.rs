//! The lookup table of a model.

use burn::module::{Content, DisplaySettings, Module, ModuleDisplay};
use burn::nn::Embedding;
use burn::tensor::{Int, Tensor};
use pixel_nn::{PIXELEmbedding, PixelModule, SynthesisMode};

/// A lookup table, whatever its vectors are stored as.
///
/// As in [`Projection`](pixel_nn::Projection), the variant is part of a parameter's path in a record.
#[derive(Module, Debug)]
#[module(custom_display)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a model has far fewer of them than numbers, and a box is no module")]
pub enum TokenEmbedding {
    /// The table as it is: `[n_embedding, d_model]` floats.
    Dense(Embedding),
    /// The table as patterns.
    Pixel(PIXELEmbedding),
}

impl TokenEmbedding {
    /// The vectors of tokens.
    ///
    /// # Shapes
    /// - tokens: `[batch, seq]`
    /// - output: `[batch, seq, d_model]`
    ///
    /// # Panics
    /// On CPU backends, if a token is [`n_embedding`](Self::n_embedding) or more.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        match self {
            Self::Dense(table) => table.forward(tokens),
            Self::Pixel(table) => table.forward(tokens),
        }
    }

    /// The product of `states` with every vector of the table: the scores of a head that shares the embedding's weight.
    /// Patterns are multiplied as `mode` says.
    ///
    /// # Shapes
    /// - states: `[batch, seq, d_model]`
    /// - output: `[batch, seq, n_embedding]`
    ///
    /// # Panics
    /// If the last axis of `states` is not `d_model`.
    pub fn scores(&self, states: Tensor<3>, mode: &SynthesisMode) -> Tensor<3> {
        match self {
            Self::Dense(table) => {
                let [batch, seq, d_model] = states.dims();
                // Two axes: with three, Flex copies the transposed table in every call.
                let scores = states.reshape([batch * seq, d_model]).matmul(table.weight.val().transpose());
                scores.reshape([batch, seq, self.n_embedding()])
            }
            Self::Pixel(table) => table.weight.linear(states, mode),
        }
    }

    /// The number of vectors.
    pub fn n_embedding(&self) -> usize {
        match self {
            Self::Dense(table) => table.weight.lazy_shape()[0],
            Self::Pixel(table) => table.weight.shape().d_output(),
        }
    }

    /// The length of a vector.
    pub fn d_model(&self) -> usize {
        match self {
            Self::Dense(table) => table.weight.lazy_shape()[1],
            Self::Pixel(table) => table.weight.shape().d_input(),
        }
    }

    /// Bytes of the table: of its codes and scales as an archive holds them, or of its floats on the device.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Dense(table) => table.weight.dtype().size() * self.n_embedding() * self.d_model(),
            Self::Pixel(table) => table.stored_bytes(),
        }
    }
}

/// Shows the table inside, as if it stood there by itself.
impl ModuleDisplay for TokenEmbedding {
    fn format(&self, passed_settings: DisplaySettings) -> String {
        match self {
            Self::Dense(table) => table.format(passed_settings),
            Self::Pixel(table) => table.format(passed_settings),
        }
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Dense(table) => table.custom_content(content),
            Self::Pixel(table) => table.custom_content(content),
        }
    }
}
