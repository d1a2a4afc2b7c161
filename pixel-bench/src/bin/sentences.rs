//! One sentence encoder, driven by lines of JSON: what `scripts/beside_onnxruntime.py` times in turns with onnxruntime.
//!
//! `RAYON_NUM_THREADS=2 sentences MODEL` loads an encoder, dense or an archive, on Flex, and writes one line:
//! `{"load_seconds", "file_bytes"}`. Then each line of standard input is a request, and gets one line:
//!
//! | request | answer |
//! |---|---|
//! | `{"tokenize": [TEXT, ..], "limit": L}` | `{"tokens": [[..], ..]}`: with special tokens, at most L of each text |
//! | `{"embed": [[token, ..], ..], "batch": N, "rounds": R}` | `{"seconds": [..]}`: each of R times for all sentences |
//! | `{"vectors": [[token, ..], ..], "batch": N}` | `{"vectors": [[..], ..]}`: of length 1, pooled as the model says |
//!
//! `limit` may be left out; no text is longer than the model's positions. N sentences in the order given are read at
//! once, padded to the longest of them, with a mask only where something is padded. Times are from the tokens to the
//! vectors on the host. A request that cannot be met gets `{"error"}`.

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use clap::Parser;
use pixel_bench::lines::{answer, file_bytes, serve};
use pixel_models::{EncoderModel, LoadOptions};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

/// What fills a batch up. It is masked, so that any token would do.
const PADDING: i64 = 0;

/// Drives one sentence encoder by lines of JSON
#[derive(Debug, Parser)]
struct Args {
    /// A directory with an encoder: weights or an archive, `config.json`, `tokenizer.json`
    model: PathBuf,
}

/// A line of standard input.
#[derive(Debug, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Request {
    Tokenize { tokenize: Vec<String>, limit: Option<usize> },
    Embed { embed: Vec<Vec<u32>>, batch: usize, rounds: usize },
    Vectors { vectors: Vec<Vec<u32>>, batch: usize },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = Device::flex();
    let start = Instant::now();
    let model = pixel_models::load(&args.model, &LoadOptions::default(), &device)?.into_encoder()?;
    let load_seconds = start.elapsed().as_secs_f64();
    answer(&json!({ "load_seconds": load_seconds, "file_bytes": file_bytes(&args.model)? }))?;
    serve(|request| obey(&model, &device, request))
}

fn obey(model: &EncoderModel, device: &Device, request: Request) -> Result<Value> {
    match request {
        Request::Tokenize { tokenize, limit } => {
            let tokenizer = model.tokenizer.as_ref().context("the model has no tokenizer.json")?;
            let limit = limit.unwrap_or(usize::MAX).min(model.max_positions);
            let tokens = tokenize.iter().map(|text| tokenizer.encode_to(text, limit)).collect::<Result<Vec<_>, _>>()?;
            Ok(json!({ "tokens": tokens }))
        }
        Request::Embed { embed: sentences, batch, rounds } => {
            check(model, &sentences, batch)?;
            let mut seconds = Vec::with_capacity(rounds);
            for _ in 0..rounds {
                let start = Instant::now();
                let vectors = embed(model, device, &sentences, batch)?;
                seconds.push(start.elapsed().as_secs_f64());
                ensure!(vectors.iter().all(|value| value.is_finite()), "vectors that are no numbers");
            }
            Ok(json!({ "seconds": seconds }))
        }
        Request::Vectors { vectors: sentences, batch } => {
            check(model, &sentences, batch)?;
            let values = embed(model, device, &sentences, batch)?;
            Ok(json!({ "vectors": values.chunks(model.config.hidden_size).collect::<Vec<_>>() }))
        }
    }
}

/// Whether the model can read the sentences.
fn check(model: &EncoderModel, sentences: &[Vec<u32>], batch: usize) -> Result<()> {
    let (most, vocabulary) = (model.max_positions, model.config.vocab_size);
    ensure!(batch > 0, "batches of no sentences");
    ensure!(!sentences.is_empty(), "no sentences");
    for tokens in sentences {
        ensure!((1..=most).contains(&tokens.len()), "a sentence of {} tokens, not 1 to {most}", tokens.len());
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocabulary) {
            bail!("the token {token}, the model has {vocabulary}");
        }
    }
    Ok(())
}

/// The vectors of the sentences, one after the other.
fn embed(model: &EncoderModel, device: &Device, sentences: &[Vec<u32>], batch: usize) -> Result<Vec<f32>> {
    let mut vectors = Vec::with_capacity(sentences.len() * model.config.hidden_size);
    for sentences in sentences.chunks(batch) {
        let longest = sentences.iter().map(Vec::len).max().unwrap_or(0);
        let shape = [sentences.len(), longest];
        let mut tokens = vec![PADDING; sentences.len() * longest];
        let mut padding = vec![true; tokens.len()];
        for (index, sentence) in sentences.iter().enumerate() {
            let places = index * longest..index * longest + sentence.len();
            padding[places.clone()].fill(false);
            tokens[places].iter_mut().zip(sentence).for_each(|(place, token)| *place = i64::from(*token));
        }
        let padded = padding.contains(&true);
        let mask = padded.then(|| Tensor::<2, Bool>::from_data(TensorData::new(padding, shape), device));
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(tokens, shape), device);
        let read = model.embed(tokens, mask).try_into_vec_as::<f32>();
        vectors.extend(read.map_err(|error| anyhow!("the vectors cannot be read: {error}"))?);
    }
    Ok(vectors)
}
