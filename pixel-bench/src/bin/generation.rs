//! One language model, driven by lines of JSON: what `scripts/beside_llama_cpp.py` times in turns with llama.cpp.
//!
//! `RAYON_NUM_THREADS=2 generation MODEL` loads a model or an archive on Flex, reads a short prompt, and writes
//! one line: `{"load_seconds", "first_token_seconds", "file_bytes"}`, both times from the call that loads. Then each
//! line of standard input is a request, and gets one line:
//!
//! | request | answer |
//! |---|---|
//! | `{"prefill": N, "rounds": R}` | `{"seconds": [..]}`: each of R times that N tokens are read in one go |
//! | `{"decode": N, "context": C, "rounds": R}` | `{"seconds": [..]}`: N tokens one by one, after C others |
//! | `{"score": [[token, ..], ..]}` | `{"negative_log_likelihood", "tokens"}`: the mean over the second halves, nats |
//! | `{"tokenize": TEXT}` | `{"tokens": [..], "bos": B}`: no special tokens; `B` is what would stand before them |
//! | `{"memory": true}` | `{"peak_bytes"}`: the most resident so far beyond what was before loading |
//!
//! Whatever is timed ends with the logits of the last token on the host. Tokens to be read follow from their places
//! ([`token_at`]), not from what was predicted. A request that cannot be met gets `{"error"}`.

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::Parser;
use pixel_bench::lines::{answer, file_bytes, serve, status_bytes};
use pixel_models::evaluate::{PerplexityConfig, perplexity};
use pixel_models::{CausalModel, LlamaCache, LoadOptions};
use pixel_nn::attention::CacheFormat;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// Tokens of the prompt before the first token.
const PROMPT: usize = 16;

/// The most tokens read in one go where nothing is timed: the attention of a prompt takes memory by its square.
const PIECE: usize = 512;

/// Drives one language model by lines of JSON
#[derive(Debug, Parser)]
struct Args {
    /// A directory with a language model: weights or an archive, `config.json`, `tokenizer.json`
    model: PathBuf,
    /// Tokens that the cache of keys and values has room for
    #[arg(long, value_name = "TOKENS", default_value_t = 2112)]
    capacity: usize,
    /// Bits of the numbers of the cache of keys and values
    #[arg(long, value_name = "32|8|4", default_value = "32", value_parser = parse_format)]
    cache_bits: CacheFormat,
}

fn parse_format(bits: &str) -> Result<CacheFormat, String> {
    match bits {
        "32" => Ok(CacheFormat::F32),
        "8" => Ok(CacheFormat::Bits8),
        "4" => Ok(CacheFormat::Bits4),
        other => Err(format!("{other} is none of 32, 8 and 4")),
    }
}

/// A line of standard input.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Request {
    Prefill { prefill: usize, rounds: usize },
    Decode { decode: usize, context: usize, rounds: usize },
    Score { score: Vec<Vec<u32>> },
    Tokenize { tokenize: String },
    Memory { memory: bool },
}

/// A model and what it has read: always the tokens that [`token_at`] names, from place 0 on.
struct Session {
    model: CausalModel,
    cache: LlamaCache,
    capacity: usize,
    device: Device,
    /// Resident bytes before the model was loaded.
    resident_before: Option<u64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let resident_before = status_bytes("VmRSS");
    let start = Instant::now();
    let mut session = Session::load(&args, resident_before)?;
    let load_seconds = start.elapsed().as_secs_f64();
    session.extend_to(PROMPT)?;
    let first_token_seconds = start.elapsed().as_secs_f64();
    answer(&json!({
        "load_seconds": load_seconds,
        "first_token_seconds": first_token_seconds,
        "file_bytes": file_bytes(&args.model)?,
    }))?;
    serve(|request| session.obey(request))
}

impl Session {
    fn load(args: &Args, resident_before: Option<u64>) -> Result<Self> {
        let device = Device::flex();
        let options = LoadOptions::default().with_cache_format(args.cache_bits);
        let model = pixel_models::load(&args.model, &options, &device)?.into_causal()?;
        let cache = model.network.cache_with_capacity(args.capacity);
        Ok(Self { model, cache, capacity: args.capacity, device, resident_before })
    }

    fn obey(&mut self, request: Request) -> Result<Value> {
        match request {
            Request::Prefill { prefill, rounds } => self.time(rounds, 0, |session| session.read(prefill)),
            Request::Decode { decode, context, rounds } => {
                self.time(rounds, context, |session| (0..decode).try_for_each(|_| session.read(1)))
            }
            Request::Score { score } => self.score(&score),
            Request::Tokenize { tokenize } => self.tokenize(&tokenize),
            Request::Memory { memory } => {
                ensure!(memory, "memory takes true");
                let peak = status_bytes("VmHWM").zip(self.resident_before).map(|(peak, before)| peak - before);
                Ok(json!({ "peak_bytes": peak }))
            }
        }
    }

    /// The seconds that `work` takes, each time after the same `context` tokens.
    fn time(&mut self, rounds: usize, context: usize, work: impl Fn(&mut Self) -> Result<()>) -> Result<Value> {
        let mut seconds = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            self.cache.truncate(context);
            self.extend_to(context)?;
            let start = Instant::now();
            work(self)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(json!({ "seconds": seconds }))
    }

    /// Reads on until `len` tokens are held.
    fn extend_to(&mut self, len: usize) -> Result<()> {
        while self.cache.len() < len {
            self.read(PIECE.min(len - self.cache.len()))?;
        }
        Ok(())
    }

    /// Reads the next `count` tokens in one go, and the logits that follow them.
    fn read(&mut self, count: usize) -> Result<()> {
        let (first, vocabulary) = (self.cache.len(), self.model.config.vocab_size);
        ensure!(count > 0 && first + count <= self.capacity, "{first} + {count} tokens, room for {}", self.capacity);
        let tokens = (first..first + count).map(|place| token_at(place, vocabulary)).collect::<Vec<_>>();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, [1, count]), &self.device);
        let logits = self.model.network.forward_cached(tokens, &mut self.cache).try_into_vec_as::<f32>();
        let logits = logits.map_err(|error| anyhow::anyhow!("the logits cannot be read: {error}"))?;
        ensure!(logits.iter().all(|logit| logit.is_finite()), "logits that are no numbers");
        Ok(())
    }

    fn score(&self, windows: &[Vec<u32>]) -> Result<Value> {
        let context = windows.first().context("no windows")?.len();
        ensure!(windows.iter().all(|window| window.len() == context), "windows of unequal length");
        let vocabulary = self.model.config.vocab_size;
        ensure!(windows.iter().flatten().all(|token| (*token as usize) < vocabulary), "a token above the vocabulary");
        let config = PerplexityConfig::new().with_context(context);
        let logits = |tokens| self.model.network.forward(tokens);
        let found = perplexity(&config, &windows.concat(), None, &self.device, logits, |_, _, _| ())?;
        Ok(json!({ "negative_log_likelihood": found.perplexity.value.ln(), "tokens": found.tokens }))
    }

    fn tokenize(&self, text: &str) -> Result<Value> {
        let tokenizer = self.model.tokenizer.as_ref().context("the model has no tokenizer.json")?;
        Ok(json!({ "tokens": tokenizer.encode_plain(text)?, "bos": tokenizer.added_bos() }))
    }
}

/// The token at a place: spread over the vocabulary, and the same in every program that is timed.
fn token_at(place: usize, vocabulary: usize) -> i64 {
    ((place * 7919 + 104_729) % vocabulary) as i64
}
