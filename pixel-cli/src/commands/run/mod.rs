//! `pixel run`.

mod bytes;
mod chat;
mod writer;

use super::model_args::{self, CacheArgs, ModelArgs};
use anyhow::{Context, Result, ensure};
use burn::tensor::{Int, Tensor};
use bytes::parse_bytes;
use indicatif::HumanCount;
use pixel_models::CausalModel;
use pixel_models::generate::{FinishReason, Generation, generate};
use pixel_models::sampling::SamplingConfig;
use pixel_nn::{SynthesisMode, WeightCache};
use serde_json::json;
use std::io::{Read, stdin};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use writer::Writer;

/// Tokens after which a text ends, unless --max-tokens says otherwise.
const TEXT_TOKENS: usize = 256;
/// Tokens after which an answer ends, unless --max-tokens says otherwise.
const ANSWER_TOKENS: usize = 1024;

/// Go on with a text, or converse
///
/// MODEL is a language model, a checkpoint or an archive, with its tokenizer.json. What follows the prompt goes to
/// standard output as it comes, the speed to standard error. A text ends where the model ends it, at --max-tokens, or
/// at the longest text that the model was made for. Special tokens that the prompt spells out are read as tokens.
///
/// With --chat, each line of standard input is a question, written down as the model's own template says, and answered;
/// with --prompt too, the one question is. What a question spells out is text. Ctrl-C stops an answer, and ends the
/// program where it waits for a question. What no longer fits the model is left out of the conversation, the oldest
/// exchange first.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a directory, or a .safetensors file with config.json and tokenizer.json next to it
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The beginning of the text; - reads it from standard input, without the line break at its end
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true, required_unless_present = "chat")]
    prompt: Option<String>,
    /// Converse, in the model's own format
    #[arg(long)]
    chat: bool,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, requires = "chat")]
    system: Option<String>,
    /// Tokens after which the text ends [default: 256, with --chat 1024]
    #[arg(long, short = 'n', value_name = "N")]
    max_tokens: Option<usize>,
    /// Below 1 likely tokens become likelier, above 1 less so; 0 always takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    temperature: f64,
    /// Choose from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Choose from the fewest likeliest tokens that have probability P together
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Choose from tokens that have at least the part P of the likeliest one's probability
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Make tokens that prompt and text have already less likely, if above 1
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Tokens back to which a token counts as repeated [default: all]
    #[arg(long, value_name = "N")]
    repetition_window: Option<usize>,
    /// The same seed gives the same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Memory for dense copies of packed weights, such as 500M or 2G. On a processor the copies are slower than the
    /// codes
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, default_value = "0")]
    cache: usize,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keys_and_values: CacheArgs,
    #[command(flatten)]
    how: ModelArgs,
}

/// A model, and how long it took to load it.
struct Loaded {
    model: CausalModel,
    seconds: f64,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        self.sampling().validate()?;
        ensure!(!(self.json && self.chat) || self.prompt.is_some(), "--json with --chat needs a question: --prompt");
        let prompt = if self.chat { None } else { self.prompt()? };
        let loaded = self.load()?;
        match prompt {
            Some(prompt) => self.go_on(&loaded, &prompt)?,
            None => chat::run(&self, &loaded)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn load(&self) -> Result<Loaded> {
        let start = Instant::now();
        let options = match self.cache {
            0 => self.how.options(),
            bytes => self.how.options().with_synthesis(SynthesisMode::Cached(WeightCache::new(bytes))),
        };
        let options = options.with_cache_format(self.keys_and_values.cache_bits);
        let model = self.how.load_with(&self.model, &options)?.into_causal()?;
        model_args::tokenizer(model.tokenizer.as_ref(), &self.model)?;
        if self.cache > 0 {
            fill_cache(&model)?;
        }
        Ok(Loaded { model, seconds: start.elapsed().as_secs_f64() })
    }

    /// Goes on with a text.
    fn go_on(&self, Loaded { model, seconds }: &Loaded, prompt: &str) -> Result<()> {
        let tokenizer = model_args::tokenizer(model.tokenizer.as_ref(), &self.model)?;
        let prompt = tokenizer.encode(prompt)?;
        let mut writer = Writer::new(tokenizer, &prompt, !self.json)?;
        let mut failure = None;
        let generation = generate(model, &prompt, &self.sampling(), |token| match writer.push(token) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        self.print(&generation, &writer.finish()?, *seconds);
        Ok(())
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens.unwrap_or(if self.chat { ANSWER_TOKENS } else { TEXT_TOKENS })
    }

    fn sampling(&self) -> SamplingConfig {
        SamplingConfig::new()
            .with_temperature(self.temperature)
            .with_top_k(self.top_k)
            .with_top_p(self.top_p)
            .with_min_p(self.min_p)
            .with_repetition_penalty(self.repetition_penalty)
            .with_repetition_window(self.repetition_window)
            .with_seed(self.seed)
            .with_max_tokens(self.max_tokens())
    }

    /// The prompt, if there is one.
    fn prompt(&self) -> Result<Option<String>> {
        if self.prompt.as_deref() != Some("-") {
            return Ok(self.prompt.clone());
        }
        let mut text = String::new();
        stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
        let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        Ok(Some(line.unwrap_or(&text).to_owned()))
    }

    /// Prints how it went, and what was made unless it is out already.
    fn print(&self, generation: &Generation, text: &str, load_seconds: f64) {
        let (prompt_rate, rate) = (generation.prompt_rate(), generation.generation_rate());
        if self.json {
            let report = json!({
                "text": text,
                "tokens": generation.tokens,
                "reason": generation.reason,
                "prompt_tokens": generation.prompt_tokens,
                "reused_tokens": generation.reused_tokens,
                "load_seconds": load_seconds,
                "prompt_seconds": generation.prompt_seconds,
                "generation_seconds": generation.generation_seconds,
                "prompt_tokens_per_second": prompt_rate,
                "tokens_per_second": rate,
            });
            println!("{report:#}");
            return;
        }
        let count = |tokens: usize| HumanCount(tokens as u64);
        let reason = match generation.reason {
            FinishReason::EndOfText => "the model ended the text".to_owned(),
            FinishReason::MaxTokens => format!("--max-tokens {} reached", self.max_tokens()),
            FinishReason::MaxPositions => "the longest text of the model reached".to_owned(),
            _ => "stopped".to_owned(),
        };
        println!();
        eprintln!("loading     {load_seconds:.2} s");
        eprintln!("prompt      {} tokens, {prompt_rate:.2} tokens/s", count(generation.prompt_tokens));
        let rate = rate.map_or(String::new(), |rate| format!(", {rate:.2} tokens/s"));
        eprintln!("generation  {} tokens{rate}; {reason}", count(generation.tokens.len()));
    }
}

/// Decodes packed weights ahead, so that what is timed is the model alone: every layer reads one token.
fn fill_cache(model: &CausalModel) -> Result<()> {
    let device = model.network.norm.gamma.val().device();
    let token = Tensor::<2, Int>::zeros([1, 1], &device);
    model.network.forward_cached(token, &mut model.network.cache());
    Ok(device.sync()?)
}
