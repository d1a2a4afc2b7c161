//! `pixel eval`.

mod report;
mod vocabularies;

use super::model_args::{CacheArgs, ModelArgs};
use super::texts::{self, Text, TextArgs};
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pixel_models::evaluate::{NEIGHBOURS, PerplexityConfig, compare, compare_embeddings, perplexity};
use pixel_models::tokenizer::TextTokenizer;
use pixel_models::{CausalModel, EncoderModel, LoadedModel};
use pixel_nn::attention::CacheFormat;
use report::{Quality, Report, Size};
use std::iter::zip;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use vocabularies::{Vocabularies, embed};

/// Sentences that an encoder reads together, unless --batch says otherwise.
const SENTENCES: usize = 16;

/// Measure what compression costs: perplexity of a language model, embeddings of an encoder
///
/// MODEL is a checkpoint or an archive. A language model's perplexity on the text is printed with its standard error;
/// with --against also its ratio to the dense model's, the mean KL divergence of the predictions, and how often both
/// find the same token most probable. The convention is that of llama.cpp's perplexity tool: the text is cut into
/// consecutive chunks of --context tokens without overlap, the first token of each is replaced by BOS if the tokenizer
/// puts one before a text, and the second half of each chunk is scored. A text is text: a special token that it spells
/// out is read as its characters, unless --special-tokens is given. Perplexities compare only at the same context and
/// tokenizer.
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
    /// The text, UTF-8, with or without a byte order mark; several files are read one after the other
    #[arg(long, short, value_name = "FILE", num_args = 1.., required = true)]
    text: Vec<PathBuf>,
    /// Tokens of a chunk, for language models; at most what the model was made for [default: that, 512 at most]
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
    texts: TextArgs,
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
        self.text.iter().map(|path| Ok(Text::read(path)?.text)).collect()
    }

    /// The texts, as an error calls them.
    fn names_of_texts(&self) -> String {
        self.text.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
    }

    fn language_model(&self, model: &CausalModel, text: &str) -> Result<Report> {
        let against = self
            .against
            .as_deref()
            .map(|path| anyhow::Ok(self.how.load_reference(path)?.into_causal()?))
            .transpose()?;
        let most = against.iter().map(|dense| dense.max_positions).chain([model.max_positions]).min();
        let config = self.perplexity_config(most.unwrap_or(model.max_positions));
        let of_dense = against.as_ref().map(|dense| (dense.tokenizer.as_ref(), dense.config.vocab_size));
        let vocabularies = Vocabularies::new(self, (model.tokenizer.as_ref(), model.config.vocab_size), of_dense)?;
        let tokens = vocabularies.encode(text, TextTokenizer::encode_plain)?;
        let bos = vocabularies.added_bos();

        config.validate()?;
        let chunks = config.count_chunks(tokens.len()).with_context(|| self.names_of_texts())?;
        if let Some(asked) = config.chunks.filter(|asked| *asked > chunks) {
            eprintln!("note: --limit {asked}: the text has {chunks} chunks of {} tokens", config.context);
        }
        let bar = self.bar(chunks, "chunks")?;
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

    /// How perplexity is measured with models for texts of at most `max_positions` tokens.
    fn perplexity_config(&self, max_positions: usize) -> PerplexityConfig {
        let (context, notice) = texts::context(self.context, max_positions, &self.model);
        notice.iter().for_each(|notice| eprintln!("{notice}"));
        let config = PerplexityConfig::new().with_context(context).with_chunks(self.limit.map(NonZeroUsize::get));
        config.with_batch(self.batch.map_or(1, NonZeroUsize::get))
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
        if let Some(asked) = self.limit.filter(|asked| asked.get() > sentences.len()) {
            eprintln!("note: --limit {asked}: the text has {} sentences", sentences.len());
        }
        let needed = NEIGHBOURS + 1;
        let (found, names) = (sentences.len(), self.names_of_texts());
        ensure!(found >= needed, "{names}: {found} sentences: {needed} are needed at least");

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
