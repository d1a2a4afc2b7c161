//! What was measured, as text and as JSON.

use crate::output;
use anyhow::{Context, Result, bail};
use burn::module::ParamId;
use indicatif::HumanCount;
use pixel_core::archive::Model;
use pixel_core::math::metrics::bits_per_weight;
use pixel_models::evaluate::{Comparison, EmbeddingComparison, Estimate};
use pixel_nn::projection::Projection;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How perplexity is measured, as it is printed with the result.
const CONVENTION: &str = "as llama.cpp's perplexity tool: consecutive chunks of --context tokens without overlap, \
                          their first token replaced by BOS if the tokenizer puts one before a text, the second half \
                          of each scored";

/// What a model takes in its files.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Size {
    /// Weights of the linear layers, embeddings and biases not counted.
    linear_weights: u64,
    /// Bits for each of them, as the file stores them.
    linear_bits_per_weight: f64,
    /// Bytes of all weight files.
    weight_file_bytes: u64,
}

impl Size {
    /// Reads the sizes of a model's linear layers in its files: on the device, a layer that is stored in 16 bits has
    /// 32.
    pub(super) fn new<'a>(
        path: &Path,
        projections: impl Iterator<Item = &'a Projection>,
        names: &BTreeMap<ParamId, String>,
    ) -> Result<Self> {
        let file = Model::open(path)?;
        let tensors = file.tensors();
        let (mut weights, mut bytes) = (0, 0);
        for projection in projections {
            let id = match projection {
                Projection::Dense(linear) => linear.weight.id,
                Projection::Pixel(linear) => linear.weight.codes().id,
                _ => bail!("{}: a linear layer of a kind that is not known here", path.display()),
            };
            let tensor = names.get(&id).and_then(|name| tensors.get(name));
            let tensor = tensor.with_context(|| format!("{}: the files have changed", path.display()))?;
            weights += tensor.shape.iter().product::<usize>() as u64;
            bytes += tensor.stored_bytes;
        }
        Ok(Self {
            linear_weights: weights,
            linear_bits_per_weight: bits_per_weight(bytes, weights),
            weight_file_bytes: file.checkpoint().file_bytes(),
        })
    }
}

/// What was measured.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) model: PathBuf,
    pub(super) against: Option<PathBuf>,
    pub(super) size: Size,
    pub(super) dense_size: Option<Size>,
    pub(super) quality: Quality,
}

/// How well the model does what it is for.
#[derive(Debug)]
pub(super) enum Quality {
    LanguageModel {
        text_tokens: usize,
        context: usize,
        chunks: usize,
        scored_tokens: usize,
        perplexity: Estimate,
        comparison: Option<Comparison>,
    },
    Encoder(EmbeddingComparison),
}

impl Report {
    /// Bytes of the dense model's files over those of the model.
    fn file_ratio(&self) -> Option<f64> {
        self.dense_size.map(|dense| dense.weight_file_bytes as f64 / self.size.weight_file_bytes as f64)
    }

    pub(super) fn json(&self) -> Result<Value> {
        let quality = match &self.quality {
            Quality::LanguageModel { text_tokens, context, chunks, scored_tokens, perplexity, comparison } => json!({
                "kind": "language model",
                "convention": CONVENTION,
                "text_tokens": text_tokens,
                "context": context,
                "chunks": chunks,
                "scored_tokens": scored_tokens,
                "perplexity": perplexity,
                "dense_perplexity": comparison.map(|comparison| comparison.dense.perplexity),
                "perplexity_ratio": comparison.map(|comparison| comparison.ratio),
                "kl_divergence": comparison.map(|comparison| comparison.divergence),
                "top_1_agreement": comparison.map(|comparison| comparison.agreement),
            }),
            Quality::Encoder(comparison) => json!({
                "kind": "encoder",
                "sentences": comparison.embeddings,
                "neighbours": comparison.neighbours,
                "cosine": comparison.cosine,
                "neighbour_overlap": comparison.overlap,
            }),
        };
        let mut report = json!({
            "model": self.model,
            "against": self.against,
            "size": self.size,
            "dense_size": self.dense_size,
            "weight_file_ratio": self.file_ratio(),
        });
        if let (Value::Object(report), Value::Object(quality)) = (&mut report, quality) {
            report.extend(quality);
        }
        Ok(report)
    }

    pub(super) fn print(&self) {
        let line = |name: &str, value: String| println!("{name:<20} {value}");
        let Size { linear_weights, linear_bits_per_weight: bits, weight_file_bytes } = self.size;
        line("model", self.model.display().to_string());
        if let Some(against) = &self.against {
            line("against", against.display().to_string());
        }
        line("linear layers", format!("{} weights, {bits:.4} bits/weight", HumanCount(linear_weights)));
        let ratio = self.file_ratio().map_or(String::new(), |ratio| format!(", {ratio:.2}× smaller"));
        line("weight files", format!("{}{ratio}", output::bytes(weight_file_bytes)));
        match &self.quality {
            Quality::LanguageModel { text_tokens, context, chunks, scored_tokens, perplexity, comparison } => {
                let text = format!("{text_tokens} tokens; {chunks} chunks of {context}, {scored_tokens} tokens scored");
                line("text", text);
                line("perplexity", estimate(*perplexity));
                if let Some(comparison) = comparison {
                    line("  of the dense model", estimate(comparison.dense.perplexity));
                    line("  ratio", estimate(comparison.ratio));
                    line("KL divergence", format!("{} nats", estimate(comparison.divergence)));
                    line("top-1 agreement", estimate(comparison.agreement));
                }
                println!("Perplexity {CONVENTION}. ± is one standard error.");
            }
            Quality::Encoder(comparison) => {
                line("text", format!("{} sentences", comparison.embeddings));
                line("cosine", estimate(comparison.cosine));
                line(&format!("overlap of {}", comparison.neighbours), estimate(comparison.overlap));
                println!(
                    "Cosine of both models' embeddings of a sentence; part of its {} nearest neighbours that are the \
                     same in both. ± is one standard error.",
                    comparison.neighbours
                );
            }
        }
    }
}

/// A value with as many digits as its error gives it: `15.34 ± 0.42`.
fn estimate(estimate: Estimate) -> String {
    let Estimate { value, error } = estimate;
    if !error.is_finite() {
        // One observation has none.
        return format!("{value:.4}");
    }
    // Two digits of the error; a divergence is exact to 1e-7.
    let digits = if error > 0.0 { (1.0 - error.log10().floor()).clamp(0.0, 7.0) as usize } else { 4 };
    format!("{value:.digits$} ± {error:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_the_digits_that_its_error_gives_it() {
        let text = |value, error| estimate(Estimate { value, error });
        assert_eq!(text(15.3421, 0.4231), "15.34 ± 0.42");
        assert_eq!(text(1234.4, 56.0), "1234 ± 56");
        assert_eq!(text(0.012341, 0.00012), "0.01234 ± 0.00012");
        assert_eq!(text(1.0, 0.0), "1.0000 ± 0.0000");
        assert_eq!(text(2.5, f64::NAN), "2.5000");
    }
}
