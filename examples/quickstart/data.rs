//! From stories to batches of tokens.

use anyhow::Result;
use burn::tensor::{Device, Int, Tensor, TensorData};
use tokenizers::Tokenizer;

use crate::corpus::STORY_BREAK;
use crate::dice::Dice;
use crate::tokenizer::{self, EOS};

/// Documents hold one to this many stories.
const STORIES_PER_DOCUMENT: usize = 4;

/// Joins stories into one text.
pub(crate) fn join(stories: &[String]) -> String {
    stories.join(STORY_BREAK)
}

/// A batch of sequences.
pub(crate) struct Batch {
    /// What the model sees, `[batch, length]`.
    pub inputs: Tensor<2, Int>,
    /// The token after each input, `[batch * length]`.
    pub targets: Tensor<1, Int>,
}

impl Batch {
    /// Splits windows of `length + 1` tokens into inputs and targets.
    pub(crate) fn new(windows: &[&[u32]], device: &Device) -> Self {
        let length = windows[0].len() - 1;
        let part = |from: usize| -> Vec<i32> {
            let part = windows.iter().flat_map(|w| &w[from..from + length]);
            part.map(|&token| token as i32).collect()
        };
        let inputs = TensorData::new(part(0), [windows.len(), length]);
        let targets = TensorData::new(part(1), [windows.len() * length]);
        Self { inputs: Tensor::from_data(inputs, device), targets: Tensor::from_data(targets, device) }
    }
}

/// The training tokens: documents, each between its begin and end tokens.
pub(crate) struct TokenStream {
    tokens: Vec<u32>,
    /// Where documents begin.
    starts: Vec<usize>,
}

impl TokenStream {
    /// Encodes the stories as documents of a few stories each.
    pub(crate) fn encode(stories: &[String], tokenizer: &Tokenizer, dice: &mut Dice) -> Result<Self> {
        let eos = tokenizer::special(tokenizer, EOS)?;
        let (mut tokens, mut starts) = (Vec::new(), Vec::new());
        let mut rest = stories;
        while !rest.is_empty() {
            let count = 1 + dice.below(STORIES_PER_DOCUMENT.min(rest.len()));
            let (document, after) = rest.split_at(count);
            starts.push(tokens.len());
            tokens.extend(tokenizer::encode(tokenizer, &join(document))?);
            tokens.push(eos);
            rest = after;
        }
        Ok(Self { tokens, starts })
    }

    /// The number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// A random batch; every other window begins a document, the others anywhere.
    pub(crate) fn batch(&self, count: usize, length: usize, dice: &mut Dice, device: &Device) -> Batch {
        let last = self.tokens.len() - length - 1;
        let windows: Vec<&[u32]> = (0..count)
            .map(|index| match index % 2 {
                0 => dice.pick(&self.starts).min(last),
                _ => dice.below(last + 1),
            })
            .map(|start| &self.tokens[start..=start + length])
            .collect();
        Batch::new(&windows, device)
    }
}

/// A text cut into windows of `length + 1` tokens which share their end points.
pub(crate) fn windows(text: &str, tokenizer: &Tokenizer, length: usize) -> Result<Vec<Vec<u32>>> {
    let tokens = tokenizer::encode(tokenizer, text)?;
    let starts = (0..).step_by(length);
    Ok(starts.map_while(|start| tokens.get(start..=start + length)).map(<[u32]>::to_vec).collect())
}
