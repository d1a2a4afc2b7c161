//! Text from a trained model, for a look at what it learned.

use anyhow::Result;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use tokenizers::Tokenizer;

use crate::dice::Dice;
use crate::model::{Llama, LlamaShape};
use crate::positions::Positions;
use crate::tokenizer::{self, EOS};

/// Continues texts with a model.
pub(crate) struct Writer<'a> {
    model: &'a Llama,
    tokenizer: &'a Tokenizer,
    device: &'a Device,
    positions: Positions,
    context: usize,
}

impl<'a> Writer<'a> {
    /// Prepares a model of the given shape for writing.
    pub(crate) fn new(model: &'a Llama, shape: &LlamaShape, tokenizer: &'a Tokenizer, device: &'a Device) -> Self {
        Self { model, tokenizer, device, positions: Positions::new(shape, device), context: shape.context }
    }

    /// Continues a prompt until the document ends or the context is full.
    ///
    /// Each token is drawn with a chance in proportion to `p^(1 / temperature)`.
    pub(crate) fn continue_text(&self, prompt: &str, temperature: f64, dice: &mut Dice) -> Result<String> {
        let eos = tokenizer::special(self.tokenizer, EOS)?;
        let mut tokens = tokenizer::encode(self.tokenizer, prompt)?;
        while tokens.len() < self.context && tokens.last() != Some(&eos) {
            tokens.push(draw(&self.chances(&tokens, temperature)?, dice));
        }
        self.tokenizer.decode(&tokens, true).map_err(anyhow::Error::from_boxed)
    }

    /// How likely each token of the vocabulary comes next.
    fn chances(&self, tokens: &[u32], temperature: f64) -> Result<Vec<f32>> {
        let ids: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
        let input = TensorData::new(ids, [1, tokens.len()]);
        let input = Tensor::<2, Int>::from_data(input, self.device);
        let logits = self.model.forward(input, &self.positions);
        let last = logits.narrow(0, tokens.len() - 1, 1) / temperature;
        Ok(softmax(last, 1).into_data().try_to_vec()?)
    }
}

/// An index, each as likely as its chance.
fn draw(chances: &[f32], dice: &mut Dice) -> u32 {
    /// Finer than any chance that matters, and exact in `f32`.
    const PARTS: usize = 1 << 24;
    let mut left = dice.below(PARTS) as f32 / PARTS as f32;
    let found = chances.iter().position(|chance| {
        left -= chance;
        left < 0.0
    });
    // Rounding can leave a remainder behind the last chance.
    found.unwrap_or(0) as u32
}
