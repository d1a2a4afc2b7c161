//! `pixel eval`.

use super::model_args::{self, CacheArgs, ModelArgs};
use crate::output;
use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::module::ParamId;
use burn::tensor::{Int, Tensor, TensorData};
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use pixel_core::archive::Model;
use pixel_core::math::metrics::bits_per_weight;
use pixel_models::evaluate::{
    Comparison, EmbeddingComparison, Estimate, NEIGHBOURS, PerplexityConfig, compare, compare_embeddings, perplexity,
};
use pixel_models::tokenizer::{TextTokenizer, check_tokens};
use pixel_models::{CausalModel, EncoderModel, LoadedModel};
use pixel_nn::attention::CacheFormat;
use pixel_nn::projection::Projection;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::iter::zip;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Tokens of a chunk, unless --context says otherwise: what llama.cpp's tool takes.
const CONTEXT: usize = 512;
/// Sentences that an encoder reads together, unless --batch says otherwise.
const SENTENCES: usize = 16;

/// How perplexity is measured, as it is printed with the result.
const CONVENTION: &str = "as llama.cpp's perplexity tool: consecutive chunks of --context tokens without overlap, \
                          their first token replaced by BOS if the tokenizer puts one before a text, the second half \
                          of each scored";

/// Measure what compression costs: perplexity of a language model, embeddings of an encoder
///
/// MODEL is a checkpoint or an archive. A language model's perplexity on the text is printed with its standard error;
/// with --against also its ratio to the dense model's, the mean KL divergence of the predictions, and how often both
/// find the same token most probable. The convention is that of llama.cpp's perplexity tool: the text is cut into
/// consecutive chunks of --context tokens without overlap, the first token of each is replaced by BOS if the tokenizer
/// puts one before a text, and the second half of each chunk is scored. Perplexities compare only at the same context
/// and tokenizer.
///
/// An encoder of the BERT family needs --against. Every line of the text that is not blank is a sentence; printed are
/// the mean cosine of its embeddings by both models, and how many of its 10 nearest neighbours stay the same.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a directory, or a .safetensors file with config.json and tokenizer.json next to it
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The dense model that it was made from, or any other of its vocabulary; it is computed in f32
    #[arg(long, value_name = "DENSE")]
    against: Option<PathBuf>,
    /// The text, UTF-8; several files are read one after the other
    #[arg(long, short, value_name = "FILE", num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    /// Tokens of a chunk, for language models [default: 512]
    #[arg(long, short, value_name = "TOKENS")]
    context: Option<usize>,
    /// Use the first N chunks, or the first N sentences for an encoder, instead of all
    #[arg(long, short, value_name = "N")]
    limit: Option<NonZeroUsize>,
    /// Chunks or sentences that are read together; more take more memory [default: 1 chunk, 16 sentences]
    #[arg(long, short, value_name = "N")]
    batch: Option<NonZeroUsize>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Show no progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    keys_and_values: CacheArgs,
    #[command(flatten)]
    how: ModelArgs,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let text = self.text()?;
        let options = self.how.options().with_cache_format(self.keys_and_values.cache_bits);
        let report = match self.how.load_with(&self.model, &options)? {
            LoadedModel::Causal(model) => self.language_model(&model, &text)?,
            LoadedModel::Encoder(model) => self.encoder(&model, &text)?,
            _ => bail!("{}: a model of a kind that cannot be evaluated", self.model.display()),
        };
        match self.json {
            true => println!("{:#}", report.json()?),
            false => report.print(),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn text(&self) -> Result<String> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).with_context(|| format!("cannot read the text {}", path.display()))
        };
        self.text.iter().map(read).collect()
    }

    fn language_model(&self, model: &CausalModel, text: &str) -> Result<Report> {
        let against = self
            .against
            .as_deref()
            .map(|path| anyhow::Ok(self.how.load_reference(path)?.into_causal()?))
            .transpose()?;
        let config = self.perplexity_config(model.max_positions)?;
        let of_dense = against.as_ref().map(|dense| (dense.tokenizer.as_ref(), dense.config.vocab_size));
        let vocabularies = Vocabularies::new(self, (model.tokenizer.as_ref(), model.config.vocab_size), of_dense)?;
        let tokens = vocabularies.encode(text, TextTokenizer::encode_plain)?;
        let bos = vocabularies.tokenizer.added_bos();

        let bar = self.bar(config.count_chunks(tokens.len())?, "chunks")?;
        let progress = |done: usize, _, perplexity: f64| {
            bar.set_position(done as u64);
            bar.set_message(format!("perplexity {perplexity:.4}"));
        };
        let device = model.network.norm.gamma.val().device();
        // With a cache of fewer bits, what is read goes through it.
        let forward = |tokens| match self.keys_and_values.cache_bits {
            CacheFormat::F32 => model.network.forward(tokens),
            _ => model.network.forward_cached_all(tokens, &mut model.network.cache()),
        };
        let (perplexity, comparison) = match &against {
            None => (perplexity(&config, &tokens, bos, &device, forward, progress)?, None),
            Some(dense) => {
                let dense = |tokens| dense.network.forward(tokens);
                let comparison = compare(&config, &tokens, bos, &device, dense, forward, progress)?;
                (comparison.model, Some(comparison))
            }
        };
        bar.finish_and_clear();
        let size = |path: &Path, model: &CausalModel| Size::new(path, model.network.projections(), &model.weight_names);
        let quality = Quality::LanguageModel {
            text_tokens: tokens.len(),
            context: config.context,
            chunks: perplexity.chunks,
            scored_tokens: perplexity.tokens,
            perplexity: perplexity.perplexity,
            comparison,
        };
        self.report(
            size(&self.model, model)?,
            zip(&self.against, &against).map(|(path, dense)| size(path, dense)),
            quality,
        )
    }

    /// How perplexity is measured with a model for texts of at most `max_positions` tokens.
    fn perplexity_config(&self, max_positions: usize) -> Result<PerplexityConfig> {
        let context = self.context.unwrap_or(CONTEXT);
        ensure!(
            context <= max_positions,
            "--context {context}: {} was made for texts of at most {max_positions} tokens",
            self.model.display(),
        );
        let chunks = self.limit.map(NonZeroUsize::get);
        let batch = self.batch.map_or(1, NonZeroUsize::get);
        Ok(PerplexityConfig { context, chunks, batch, vocabulary: None })
    }

    fn encoder(&self, model: &EncoderModel, text: &str) -> Result<Report> {
        let Some(path) = &self.against else {
            bail!("{} is an encoder: --against DENSE is needed to compare its embeddings with", self.model.display());
        };
        ensure!(self.context.is_none(), "--context is for language models, {} is an encoder", self.model.display());
        let dense = self.how.load_reference(path)?.into_encoder()?;
        let of_dense = Some((dense.tokenizer.as_ref(), dense.config.vocab_size));
        let vocabularies = Vocabularies::new(self, (model.tokenizer.as_ref(), model.config.vocab_size), of_dense)?;
        let most = model.max_positions.min(dense.max_positions);
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let lines = lines.take(self.limit.map_or(usize::MAX, NonZeroUsize::get));
        let sentences = lines.map(|line| vocabularies.sentence(line, most)).collect::<Result<Vec<_>>>()?;
        let needed = NEIGHBOURS + 1;
        ensure!(sentences.len() >= needed, "{} sentences: {needed} are needed at least", sentences.len());

        let bar = self.bar(2 * sentences.len(), "embeddings")?;
        let batch = self.batch.map_or(SENTENCES, NonZeroUsize::get);
        let of_dense = embed(&dense, &sentences, batch, &bar)?;
        let comparison = compare_embeddings(&of_dense, &embed(model, &sentences, batch, &bar)?, NEIGHBOURS)?;
        bar.finish_and_clear();
        let size =
            |path: &Path, model: &EncoderModel| Size::new(path, model.network.projections(), &model.weight_names);
        self.report(size(&self.model, model)?, [size(path, &dense)], Quality::Encoder(comparison))
    }

    fn report(
        &self,
        size: Size,
        dense_size: impl IntoIterator<Item = Result<Size>>,
        quality: Quality,
    ) -> Result<Report> {
        let dense_size = dense_size.into_iter().next().transpose()?;
        Ok(Report { model: self.model.clone(), against: self.against.clone(), size, dense_size, quality })
    }

    fn bar(&self, length: usize, unit: &str) -> Result<ProgressBar> {
        let target = if self.quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(length as u64), target);
        let style = format!("{{bar:32}} {{percent:>3}} % {{pos}}/{{len}} {unit}, {{eta}} left  {{wide_msg}}");
        bar.set_style(ProgressStyle::with_template(&style)?);
        bar.enable_steady_tick(std::time::Duration::from_millis(200));
        Ok(bar)
    }
}

/// The tokenizers of a model and of the dense one, which have to give the same tokens.
struct Vocabularies<'a> {
    tokenizer: &'a TextTokenizer,
    /// That of the dense model, if there are two.
    other: Option<&'a TextTokenizer>,
    size: usize,
    args: &'a Args,
}

type Vocabulary<'a> = (Option<&'a TextTokenizer>, usize);

impl<'a> Vocabularies<'a> {
    fn new(args: &'a Args, (own, size): Vocabulary<'a>, dense: Option<Vocabulary<'a>>) -> Result<Self> {
        let (of_dense, dense_size) = dense.unwrap_or((None, size));
        let against = args.against.as_deref().unwrap_or(&args.model).display();
        ensure!(
            size == dense_size,
            "{} has a vocabulary of {size} tokens, {against} one of {dense_size}: they cannot be compared",
            args.model.display(),
        );
        let tokenizer = model_args::tokenizer(own.or(of_dense), &args.model)?;
        Ok(Self { tokenizer, other: own.and(of_dense), size, args })
    }

    /// The tokens of a text, of which the models have each one.
    fn encode<E>(&self, text: &str, encode: impl Fn(&TextTokenizer, &str) -> Result<Vec<u32>, E>) -> Result<Vec<u32>>
    where
        anyhow::Error: From<E>,
    {
        let (model, tokens) = (self.args.model.display(), encode(self.tokenizer, text)?);
        if let (Some(other), Some(against)) = (self.other, &self.args.against) {
            let same = encode(other, text)? == tokens;
            ensure!(same, "the tokenizers of {model} and {} give different tokens for the text", against.display());
        }
        check_tokens(Some(self.tokenizer), tokens.iter().chain(&self.tokenizer.added_bos()), self.size)
            .with_context(|| model.to_string())?;
        Ok(tokens)
    }

    /// The tokens of a sentence, at most `most`, with those that the tokenizer puts around it.
    fn sentence(&self, line: &str, most: usize) -> Result<Vec<u32>> {
        let tokens = self.encode(line, |tokenizer, line| tokenizer.encode_to(line, most))?;
        ensure!(!tokens.is_empty(), "the sentence {line:?} has no tokens");
        Ok(tokens)
    }
}

/// The embedding of each sentence; sentences of the same number of tokens are read together, so that none is padded.
fn embed(model: &EncoderModel, sentences: &[Vec<u32>], batch: usize, bar: &ProgressBar) -> Result<Vec<Vec<f32>>> {
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

/// What a model takes in its files.
#[derive(Debug, Clone, Copy, Serialize)]
struct Size {
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
    fn new<'a>(
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
struct Report {
    model: PathBuf,
    against: Option<PathBuf>,
    size: Size,
    dense_size: Option<Size>,
    quality: Quality,
}

/// How well the model does what it is for.
#[derive(Debug)]
enum Quality {
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

    fn json(&self) -> Result<Value> {
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

    fn print(&self) {
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
