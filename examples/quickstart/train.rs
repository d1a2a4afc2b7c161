//! Trains the model of the quickstart and writes it next to this file.
//!
//! ```sh
//! cargo run --release --example train_quickstart --features train
//! ```
//!
//! Everything comes from seeds: stories from a grammar, a tokenizer from the stories, a model of
//! the Llama architecture from both. Another folder to write to can be given as an argument.
//!
//! ```text
//! corpus ──▶ tokenizer ──▶ data ──▶ learn ──▶ export
//! stories    512 tokens    batches  weights   model/, text/
//! ```

mod corpus;
mod data;
mod dice;
mod export;
mod learn;
mod model;
mod positions;
mod sample;
mod tokenizer;

use std::env;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use burn::module::Module;
use burn::tensor::Device;

use corpus::Split;
use data::TokenStream;
use dice::Dice;
use learn::Schedule;
use model::LlamaShape;

/// The seed of weights, batches and samples; the splits of the corpus have their own.
const SEED: u64 = 4;

/// Bytes of text to train on, more than the schedule reads.
const TRAIN_BYTES: usize = 20_000_000;

/// Bytes of text to measure on.
const HELD_OUT_BYTES: usize = 150_000;

/// Bytes of text for calibrating a compressor.
const CALIBRATION_BYTES: usize = 300_000;

/// Bytes of training text that the tokenizer learns from.
const TOKENIZER_BYTES: usize = 2_000_000;

/// Chosen to end within 25 minutes on one core.
const SCHEDULE: Schedule = Schedule { steps: 4000, warmup: 100, batch: 8, peak: 4e-3, floor: 0.02 };

fn main() -> Result<()> {
    let start = Instant::now();
    let folder = env::args_os().nth(1).map_or_else(default_folder, PathBuf::from);
    let held_out = write_texts(&folder)?;

    let shape = LlamaShape::QUICKSTART;
    let stories = corpus::stories(Split::Train, TRAIN_BYTES);
    let sample = corpus::stories(Split::Train, TOKENIZER_BYTES);
    let tokenizer = tokenizer::train(&sample, shape.vocabulary)?;
    let mut dice = Dice::new(SEED);
    let stream = TokenStream::encode(&stories, &tokenizer, &mut dice)?;

    let device = Device::flex();
    device.seed(SEED);
    let model = learn::train(&shape, &SCHEDULE, &stream, &mut dice, &device.clone().autodiff())?;
    let model = export::round_to_f16(model.valid());
    export::write_model(&folder.join("model"), &shape, &model, &tokenizer)?;

    let windows = data::windows(&held_out, &tokenizer, shape.context)?;
    let loss = learn::mean_loss(&model, &shape, &windows, &device)?;
    let tokens = windows.len() * shape.context;
    println!("held out: {tokens} tokens, loss {loss:.4}, perplexity {:.4}", loss.exp());
    let writer = sample::Writer::new(&model, &shape, &tokenizer, &device);
    println!("{}", writer.continue_text("", 0.8, &mut dice)?);
    println!("{:.0} s in all", start.elapsed().as_secs_f32());
    Ok(())
}

fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart")
}

/// Writes the held-out and the calibration text and returns the former.
fn write_texts(folder: &Path) -> Result<String> {
    let text = |split, bytes| data::join(&corpus::stories(split, bytes)) + "\n";
    let held_out = text(Split::HeldOut, HELD_OUT_BYTES);
    let calibration = text(Split::Calibration, CALIBRATION_BYTES);
    export::write(&folder.join("text/held-out.txt"), held_out.as_bytes())?;
    export::write(&folder.join("text/calibration.txt"), calibration.as_bytes())?;
    Ok(held_out)
}
