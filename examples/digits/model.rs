//! A classifier of images, as anyone would define it with Burn's own modules.

use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, Gelu, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use super::data::{CLASSES, PIXELS};

/// Width of the stream between the blocks.
const WIDTH: usize = 512;

/// Blocks between input and output.
const BLOCKS: usize = 2;

/// The part of a block's activations that training drops.
const DROPOUT: f64 = 0.2;

/// A residual network of fully connected layers: 64 → 512 → … → 512 → 10.
#[derive(Module, Debug)]
pub(crate) struct Classifier {
    /// From pixels to the stream, `[PIXELS, WIDTH]`.
    pub stem: Linear,
    /// The blocks, from the input upwards.
    pub blocks: Vec<Block>,
    /// The norm before the output layer.
    pub norm: LayerNorm,
    /// From the stream to a score for each digit, `[WIDTH, CLASSES]`.
    pub head: Linear,
}

impl Classifier {
    /// A model with random weights.
    pub(crate) fn init(device: &Device) -> Self {
        Self {
            stem: LinearConfig::new(PIXELS, WIDTH).init(device),
            blocks: (0..BLOCKS).map(|_| Block::init(device)).collect(),
            norm: LayerNormConfig::new(WIDTH).init(device),
            head: LinearConfig::new(WIDTH, CLASSES).init(device),
        }
    }

    /// The logits of the digits.
    ///
    /// # Shapes
    /// - pixels: `[batch, PIXELS]`
    /// - output: `[batch, CLASSES]`
    pub(crate) fn forward(&self, pixels: Tensor<2>) -> Tensor<2> {
        let mut stream = self.stem.forward(pixels);
        for block in &self.blocks {
            stream = block.forward(stream);
        }
        self.head.forward(self.norm.forward(stream))
    }
}

/// Two layers with an activation between them, added to the stream.
#[derive(Module, Debug)]
pub(crate) struct Block {
    /// The norm before the layers.
    pub norm: LayerNorm,
    /// Before the activation, `[WIDTH, WIDTH]`.
    pub up: Linear,
    /// The activation.
    pub gelu: Gelu,
    /// Keeps activations from relying on each other.
    pub dropout: Dropout,
    /// Back to the stream, `[WIDTH, WIDTH]`.
    pub down: Linear,
}

impl Block {
    fn init(device: &Device) -> Self {
        Self {
            norm: LayerNormConfig::new(WIDTH).init(device),
            up: LinearConfig::new(WIDTH, WIDTH).init(device),
            gelu: Gelu::new(),
            dropout: DropoutConfig::new(DROPOUT).init(),
            down: LinearConfig::new(WIDTH, WIDTH).init(device),
        }
    }

    fn forward(&self, stream: Tensor<2>) -> Tensor<2> {
        let inner = self.gelu.forward(self.up.forward(self.norm.forward(stream.clone())));
        stream + self.down.forward(self.dropout.forward(inner))
    }
}
