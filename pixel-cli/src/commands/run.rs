//! `pixel run`.

use super::model_args::{self, CacheArgs, ModelArgs};
use anyhow::{Context, Result};
use burn::tensor::{Int, Tensor};
use indicatif::HumanCount;
use pixel_models::CausalModel;
use pixel_models::generate::{FinishReason, Generation, generate};
use pixel_models::sampling::SamplingConfig;
use pixel_models::tokenizer::{StreamDecoder, TextTokenizer};
use pixel_nn::{SynthesisMode, WeightCache};
use serde_json::json;
use std::io::{Read, Write, stdin, stdout};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Go on with a text
///
/// MODEL is a language model, a checkpoint or an archive, with its tokenizer.json. What follows the prompt goes to
/// standard output as it comes, the speed to standard error. A text ends where the model ends it, at --max-tokens, or
/// at the longest text that the model was made for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: a directory, or a .safetensors file with config.json and tokenizer.json next to it
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// The beginning of the text; - reads it from standard input, without the line break at its end
    #[arg(long, short, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// Tokens after which the text ends
    #[arg(long, short = 'n', value_name = "N", default_value_t = 256)]
    max_tokens: usize,
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

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let sampling = self.sampling();
        sampling.validate()?;
        let prompt = self.prompt()?;
        let start = Instant::now();
        let options = match self.cache {
            0 => self.how.options(),
            bytes => self.how.options().with_synthesis(SynthesisMode::Cached(WeightCache::new(bytes))),
        };
        let options = options.with_cache_format(self.keys_and_values.cache_bits);
        let model = self.how.load_with(&self.model, &options)?.into_causal()?;
        let tokenizer = model_args::tokenizer(model.tokenizer.as_ref(), &self.model)?;
        let prompt = tokenizer.encode(&prompt)?;
        if self.cache > 0 {
            fill_cache(&model)?;
        }
        let load_seconds = start.elapsed().as_secs_f64();
        let mut writer = Writer::new(tokenizer, &prompt, !self.json)?;
        let mut failure = None;
        let generation = generate(&model, &prompt, &sampling, |token| match writer.push(token) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        self.print(&generation, &writer.finish()?, load_seconds);
        Ok(ExitCode::SUCCESS)
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
            .with_max_tokens(self.max_tokens)
    }

    fn prompt(&self) -> Result<String> {
        if self.prompt != "-" {
            return Ok(self.prompt.clone());
        }
        let mut text = String::new();
        stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
        let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        Ok(line.unwrap_or(&text).to_owned())
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
            FinishReason::MaxTokens => format!("--max-tokens {} reached", self.max_tokens),
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

/// The text after a prompt, printed as it comes.
struct Writer<'a> {
    stream: StreamDecoder<'a>,
    /// The end of the prompt's text, if the tokens to come decide what it is.
    waiting: String,
    text: String,
    print: bool,
}

impl<'a> Writer<'a> {
    fn new(tokenizer: &'a TextTokenizer, prompt: &[u32], print: bool) -> Result<Self> {
        // Whether the first word begins with a space depends on the one before.
        let mut stream = tokenizer.stream();
        for token in prompt {
            stream.push(*token)?;
        }
        let waiting = stream.clone().finish()?;
        Ok(Self { stream, waiting, text: String::new(), print })
    }

    fn push(&mut self, token: u32) -> Result<()> {
        let piece = self.stream.push(token)?;
        self.write(&piece)
    }

    fn write(&mut self, piece: &str) -> Result<()> {
        if piece.is_empty() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut self.waiting);
        let piece = piece.strip_prefix(waiting.as_str()).unwrap_or(piece);
        self.text.push_str(piece);
        if self.print {
            let mut out = stdout().lock();
            out.write_all(piece.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")?;
        }
        Ok(())
    }

    /// The whole text.
    fn finish(mut self) -> Result<String> {
        let rest = self.stream.clone().finish()?;
        self.write(&rest)?;
        Ok(self.text)
    }
}

/// A number of bytes: `4096`, `500K`, `1.5G`, `2GiB`; K, M and G are powers of 1024.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let refuse = || format!("{text:?} is no number of bytes such as 4096, 500M or 1.5G");
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit.trim().to_ascii_uppercase().as_str() {
        "" | "B" => 1u64,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        _ => return Err(refuse()),
    };
    let bytes = number.parse::<f64>().map_err(|_| refuse())? * factor as f64;
    // Casts of floats end at the largest number.
    Ok(bytes.ceil() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_with_their_unit() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("4096B", 4096),
            ("3k", 3072),
            ("500M", 500 << 20),
            ("1.5 GiB", 3 << 29),
            ("2gb", 2 << 30),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.2.3", "5X", "5 weights", "1e3"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
