//! `pixel calibrate`.

use super::model_args::{ModelArgs, tokenizer};
use super::texts::{self, Text, TextArgs, Vocabulary};
use crate::output;
use crate::progress::stop_on_signal;
use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pixel_core::archive::calibration::{Calibration, Description, Source, Weighting, merge};
use pixel_core::archive::{OutputKind, check_output};
use pixel_models::LoadedModel;
use pixel_models::calibrate::{CalibrationTokens, calibrate_causal, calibrate_encoder};
use pixel_models::tokenizer::TextTokenizer;
use pixel_nn::calibration::{CalibrationOptions, CalibrationProgress};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Tokens to read, unless --tokens says otherwise.
const TOKENS: usize = 65536;

/// Collect what a model's layers read, for `pixel compress --calibration`
///
/// MODEL is run on texts, and the second moments of each layer's inputs are written to a file. A decoder reads chunks
/// of --context tokens, evenly spread over the texts; an encoder reads lines. A text is text: a special token that it
/// spells out is read as its characters, unless --special-tokens is given. Choose texts like those that the model will
/// read: that matters more than their amount. Files collected on several machines are put together with --merge.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a Hugging Face directory
    #[arg(value_name = "MODEL", required_unless_present = "merge")]
    model: Option<PathBuf>,
    /// UTF-8 texts, with or without a byte order mark; of several files, each gives tokens by its length
    #[arg(long, short, value_name = "FILE", num_args = 1.., required_unless_present = "merge")]
    text: Vec<PathBuf>,
    /// The calibration file to write
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Merge these calibration files of one model instead of running it
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["model", "text"])]
    merge: Vec<PathBuf>,
    /// Tokens to read, about; fewer if the texts have fewer [default: 65536]
    #[arg(long)]
    tokens: Option<usize>,
    /// Tokens of a chunk, or of a line at most; at most what the model was made for [default: that, 512 at most]
    #[arg(long)]
    context: Option<usize>,
    #[command(flatten)]
    texts: TextArgs,
    /// How much each token counts
    #[arg(long, value_enum, default_value_t = WeightingArg::Gradient)]
    weighting: WeightingArg,
    /// Tokens run at a time
    #[arg(long, default_value_t = 1024)]
    batch_tokens: usize,
    /// Memory for sums in MiB; what does not fit is collected in a further run over the texts
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory: u64,
    /// Seed of what is drawn under gradient weighting
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace the output if it exists, provided that PIXEL wrote it
    #[arg(long)]
    overwrite: bool,
    /// Print a JSON report instead of text
    #[arg(long)]
    json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    how: ModelArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum WeightingArg {
    /// By the gradient of the model's output in the layer's: what matters to the model counts more
    Gradient,
    /// The same for all
    Uniform,
}

/// Fewer tokens than this for each input of the widest layer may gain nothing: the quickstart's model (width 128,
/// widest 384) at 2 bits is as good with 2048 tokens as without a calibration, and better with 8192.
const TOKENS_PER_INPUT: u64 = 8;

/// What the owner of a calibration should know of it: whether it is of little text, and whether any counts twice.
fn notes(description: &Description) -> Vec<String> {
    let mut notes = Vec::new();
    let little = description.groups.values().filter(|group| group.tokens < TOKENS_PER_INPUT * group.d_input as u64);
    if let Some(widest) = little.max_by_key(|group| group.d_input) {
        notes.push(format!(
            "{} tokens for inputs of width {}: below {TOKENS_PER_INPUT} a width, a calibration may gain nothing; take \
             more text, or compare with `pixel eval` what comes of it with what comes of none",
            widest.tokens, widest.d_input
        ));
    }
    for (place, source) in description.sources.iter().enumerate() {
        if description.sources[..place].iter().any(|other| other.blake3 == source.blake3) {
            notes.push(format!("the text {} counts twice: two of the files were collected from it", source.name));
        }
    }
    notes
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let start = Instant::now();
        stop_on_signal()?;
        let description = match &self.model {
            Some(model) => self.collect(model)?,
            None => {
                let files = self.merge.iter().map(|path| Ok(Calibration::open(path)?)).collect::<Result<Vec<_>>>()?;
                merge(&files, &self.output, self.overwrite)?
            }
        };
        let bytes = std::fs::metadata(&self.output).map(|file| file.len()).unwrap_or_default();
        self.print(&description, bytes, start.elapsed().as_secs_f64());
        if !self.quiet {
            notes(&description).iter().for_each(|note| eprintln!("note: {note}"));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn collect(&self, path: &Path) -> Result<Description> {
        for (option, value) in
            [("--context", self.context), ("--batch-tokens", Some(self.batch_tokens)), ("--tokens", self.tokens)]
        {
            ensure!(value != Some(0), "{option} 0: it must be at least 1");
        }
        check_output(&self.output, OutputKind::File, self.overwrite)?;
        let texts = self.text.iter().map(|path| Text::read(path)).collect::<Result<Vec<_>>>()?;
        let model = self.how.load(path)?;
        let options = |sources| {
            let weighting = match self.weighting {
                WeightingArg::Gradient => Weighting::Gradient,
                WeightingArg::Uniform => Weighting::Uniform,
            };
            CalibrationOptions { weighting, memory_bytes: self.memory << 20, overwrite: self.overwrite, sources }
        };
        let bar = self.bar()?;
        let mut progress = |done: CalibrationProgress| {
            bar.set_length((done.batches * done.passes) as u64);
            bar.set_position(((done.pass - 1) * done.batches + done.batch) as u64);
            bar.set_message(format!("pass {} of {}", done.pass, done.passes));
        };
        let description = match &model {
            LoadedModel::Causal(model) => {
                let vocabulary = self.vocabulary(model.tokenizer.as_ref(), model.config.vocab_size, path)?;
                let (tokens, sources) = self.chunks(&texts, &vocabulary, self.cut(model.max_positions, path))?;
                calibrate_causal(model, &tokens, &options(sources), &self.output, &mut progress)?
            }
            LoadedModel::Encoder(model) => {
                let vocabulary = self.vocabulary(model.tokenizer.as_ref(), model.config.vocab_size, path)?;
                let (tokens, sources) = self.lines(&texts, &vocabulary, self.cut(model.max_positions, path))?;
                calibrate_encoder(model, &tokens, &options(sources), &self.output, &mut progress)?
            }
            _ => bail!("{}: a model of a kind that cannot be calibrated", path.display()),
        };
        bar.finish_and_clear();
        Ok(description)
    }

    fn tokens(&self) -> usize {
        self.tokens.unwrap_or(TOKENS)
    }

    fn vocabulary(&self, own: Option<&TextTokenizer>, rows: usize, path: &Path) -> Result<Vocabulary> {
        Ok(Vocabulary { tokenizer: self.texts.tokenizer(tokenizer(own, path)?), rows })
    }

    /// Tokens of a chunk, with a word if they are fewer than asked for.
    fn cut(&self, max_positions: usize, path: &Path) -> usize {
        let (context, notice) = texts::context(self.context, max_positions, path);
        notice.iter().for_each(|notice| self.say(notice));
        context
    }

    /// Says so if more tokens were asked for than there are in what can be read of the texts.
    fn say_if_fewer(&self, total: usize) {
        if let Some(asked) = self.tokens.filter(|asked| *asked > total) {
            self.say(&format!("note: --tokens {asked}: the texts have {total}"));
        }
    }

    fn say(&self, notice: &str) {
        if !self.quiet {
            eprintln!("{notice}");
        }
    }

    /// Chunks of every text, in proportion to its length; texts shorter than a chunk are left out, with a word, unless
    /// all of them are.
    fn chunks(
        &self,
        texts: &[Text],
        vocabulary: &Vocabulary,
        context: usize,
    ) -> Result<(CalibrationTokens, Vec<Source>)> {
        let tokenizer = &vocabulary.tokenizer;
        let encode =
            |text: &Text| vocabulary.check(tokenizer.encode_plain(&text.text)).with_context(|| text.name.clone());
        let encoded = texts.iter().map(|text| Ok((text, encode(text)?))).collect::<Result<Vec<_>>>()?;
        let has_chunk = |tokens: &Vec<u32>| tokens.len() >= context;
        let any = encoded.iter().any(|(_, tokens)| has_chunk(tokens));
        let (taken, short): (Vec<_>, Vec<_>) = encoded.iter().partition(|(_, tokens)| !any || has_chunk(tokens));
        for (text, tokens) in short {
            let (name, found) = (&text.name, tokens.len());
            self.say(&format!("note: {name}: left out, for its {found} tokens are fewer than a chunk of {context}"));
        }
        let total: usize = taken.iter().map(|(_, tokens)| tokens.len()).sum();
        self.say_if_fewer(total);
        let mut all = CalibrationTokens { texts: Vec::new(), batch_tokens: self.batch_tokens, seed: self.seed };
        let mut sources = Vec::new();
        for (text, tokens) in taken {
            let share = (self.tokens() as f64 * tokens.len() as f64 / total as f64).round() as usize;
            let part = CalibrationTokens::chunks(tokens, context, share, tokenizer.added_bos());
            let part = part.with_context(|| text.name.clone())?;
            sources.push(source(text, &part));
            all.texts.extend(part.texts);
        }
        Ok((all, sources))
    }

    /// Lines of every text, in proportion to its length.
    fn lines(
        &self,
        texts: &[Text],
        vocabulary: &Vocabulary,
        context: usize,
    ) -> Result<(CalibrationTokens, Vec<Source>)> {
        let encode = |text: &Text| -> Result<Vec<Vec<u32>>> {
            let cut = |line: &str| vocabulary.check(vocabulary.tokenizer.encode_to(line, context));
            text.lines().map(cut).collect::<Result<_>>().with_context(|| text.name.clone())
        };
        let encoded = texts.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let total: usize = encoded.iter().flatten().map(Vec::len).sum();
        self.say_if_fewer(total);
        let mut all = CalibrationTokens { texts: Vec::new(), batch_tokens: self.batch_tokens, seed: self.seed };
        let mut sources = Vec::new();
        for (text, lines) in texts.iter().zip(&encoded) {
            let len: usize = lines.iter().map(Vec::len).sum();
            if len == 0 {
                bail!("{}: no line with text", text.name);
            }
            let part =
                CalibrationTokens::texts(lines, (self.tokens() as f64 * len as f64 / total as f64).round() as usize);
            sources.push(source(text, &part));
            all.texts.extend(part.texts);
        }
        Ok((all, sources))
    }

    fn bar(&self) -> Result<ProgressBar> {
        let hidden = self.quiet || self.json;
        let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(1), target);
        bar.set_style(ProgressStyle::with_template(
            "{bar:32} {percent:>3} % {pos}/{len} batches, {eta} left  {wide_msg}",
        )?);
        Ok(bar)
    }

    fn print(&self, description: &Description, bytes: u64, seconds: f64) {
        let weights: usize = description.groups.values().map(|group| group.weights.len()).sum();
        let tokens: u64 = description.sources.iter().map(|source| source.tokens).sum();
        if self.json {
            let report = json!({
                "output": self.output,
                "bytes": bytes,
                "seconds": seconds,
                "tokens": tokens,
                "weights": weights,
                "groups": description.groups.len(),
                "weighting": description.weighting,
                "sources": description.sources,
            });
            println!("{report:#}");
        } else if !self.quiet {
            let mut table = output::table(&["text", "tokens"], 1);
            for source in &description.sources {
                table.add_row([source.name.clone(), source.tokens.to_string()]);
            }
            println!("{table}");
            println!(
                "{weights} weights, {} groups of inputs, {tokens} tokens, {seconds:.0} s",
                description.groups.len()
            );
            println!("{}: {}", self.output.display(), output::bytes(bytes));
        }
    }
}

fn source(text: &Text, part: &CalibrationTokens) -> Source {
    Source { name: text.name.clone(), blake3: text.blake3.clone(), tokens: part.num_tokens() as u64 }
}
