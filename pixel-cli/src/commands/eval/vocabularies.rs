//! Texts to tokens that two models share, and sentences to vectors.

use super::Args;
use crate::commands::model_args;
use crate::commands::texts::Vocabulary;
use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::{Int, Tensor, TensorData};
use indicatif::ProgressBar;
use pixel_models::tokenizer::TextTokenizer;
use pixel_models::{EncoderModel, ModelError};
use std::collections::BTreeMap;
use std::iter::zip;

/// The tokenizers of a model and of the dense one, which have to give the same tokens.
pub(super) struct Vocabularies<'a> {
    own: Vocabulary,
    /// The tokenizer of the dense model, if there are two.
    other: Option<TextTokenizer>,
    args: &'a Args,
}

type Known<'a> = (Option<&'a TextTokenizer>, usize);

impl<'a> Vocabularies<'a> {
    pub(super) fn new(args: &'a Args, (own, rows): Known<'_>, dense: Option<Known<'_>>) -> Result<Self> {
        let (of_dense, dense_rows) = dense.unwrap_or((None, rows));
        let against = args.against.as_deref().unwrap_or(&args.model).display();
        ensure!(
            rows == dense_rows,
            "{} has a vocabulary of {rows} tokens, {against} one of {dense_rows}: they cannot be compared",
            args.model.display(),
        );
        let tokenizer = args.texts.tokenizer(model_args::tokenizer(own.or(of_dense), &args.model)?);
        let other = own.and(of_dense).map(|tokenizer| args.texts.tokenizer(tokenizer));
        Ok(Self { own: Vocabulary { tokenizer, rows }, other, args })
    }

    /// The token that the tokenizer puts before a text.
    pub(super) fn added_bos(&self) -> Option<u32> {
        self.own.tokenizer.added_bos()
    }

    /// The tokens of a text, of which the models have each one.
    pub(super) fn encode(
        &self,
        text: &str,
        encode: impl Fn(&TextTokenizer, &str) -> Result<Vec<u32>, ModelError>,
    ) -> Result<Vec<u32>> {
        let (model, tokens) = (self.args.model.display(), encode(&self.own.tokenizer, text)?);
        if let (Some(other), Some(against)) = (&self.other, &self.args.against) {
            let same = encode(other, text)? == tokens;
            ensure!(same, "the tokenizers of {model} and {} give different tokens for the text", against.display());
        }
        self.own.check(Ok(tokens)).with_context(|| model.to_string())
    }

    /// The tokens of a sentence, at most `most`, with those that the tokenizer puts around it.
    pub(super) fn sentence(&self, line: &str, most: usize) -> Result<Vec<u32>> {
        let tokens = self.encode(line, |tokenizer, line| tokenizer.encode_to(line, most))?;
        ensure!(!tokens.is_empty(), "the sentence {line:?} has no tokens");
        Ok(tokens)
    }
}

/// The embedding of each sentence; sentences of the same number of tokens are read together, so that none is padded.
pub(super) fn embed(
    model: &EncoderModel,
    sentences: &[Vec<u32>],
    batch: usize,
    bar: &ProgressBar,
) -> Result<Vec<Vec<f32>>> {
    let device = model.network.norm.gamma.val().device();
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, tokens) in sentences.iter().enumerate() {
        by_length.entry(tokens.len()).or_default().push(index);
    }
    let mut embeddings = vec![Vec::new(); sentences.len()];
    for (length, indices) in &by_length {
        for indices in indices.chunks(batch) {
            let tokens = indices.iter().flat_map(|index| &sentences[*index]).map(|token| i64::from(*token)).collect();
            let tokens = TensorData::new::<i64, _>(tokens, [indices.len(), *length]);
            let vectors = model.embed(Tensor::<2, Int>::from_data(tokens, &device), None);
            let width = vectors.dims()[1];
            let read = vectors.try_into_vec_as::<f32>();
            let values = read.map_err(|error| anyhow!("an embedding cannot be read from its device: {error}"))?;
            for (index, vector) in zip(indices, values.chunks_exact(width)) {
                embeddings[*index] = vector.to_vec();
            }
            bar.inc(indices.len() as u64);
        }
    }
    Ok(embeddings)
}
