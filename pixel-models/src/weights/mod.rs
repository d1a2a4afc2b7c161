//! From the tensors of a checkpoint or an archive to the parameters of a model.

mod embedding;
mod loader;
mod unread;

pub use embedding::TokenEmbedding;
pub use loader::WeightLoader;
pub use unread::{UnreadReason, UnreadTensor};

pub(crate) use unread::{layer_of, unread};

use pixel_nn::{PIXELAttention, Projection};

/// What the linear layers of a model take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinearSize {
    /// Weights, biases not counted.
    pub weights: usize,
    /// Bytes of the weights: of codes and scales as an archive holds them, of floats as they are on the device.
    pub stored_bytes: usize,
}

impl LinearSize {
    /// The size of some projections together.
    pub(crate) fn of<'a>(projections: impl IntoIterator<Item = &'a Projection>) -> Self {
        projections.into_iter().fold(Self::default(), |sum, projection| Self {
            weights: sum.weights + projection.d_input() * projection.d_output(),
            stored_bytes: sum.stored_bytes + projection.stored_bytes(),
        })
    }

    /// Bits for each weight.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.stored_bytes as f64 / self.weights as f64
    }
}

/// The projections of an attention.
pub(crate) fn projections(attention: &PIXELAttention) -> [&Projection; 4] {
    [&attention.query, &attention.key, &attention.value, &attention.output]
}
