//! Fine-tunes a compressed model: what is stored in few bits stays as it is, scales, biases and norms learn. An archive
//! holds the result.
//!
//! ```sh
//! cargo run --release --example finetune_compressed
//! ```
//!
//! A classifier of handwritten digits is trained, compressed to 2 bits a weight, measured, trained on for a few passes
//! over the same images, and measured again. The losses of the passes are higher than the measured ones: dropout is on.

#[path = "common/backend.rs"]
mod backend;
mod digits;
#[path = "common/options.rs"]
mod options;

use anyhow::Result;
use burn::module::Module;

use digits::compress::compress;
use digits::data::Digits;
use digits::model::Classifier;
use digits::train::{Output, Schedule, evaluate, improve, train};
use options::Options;

/// Bits a weight to compress to.
const BITS: f64 = 2.0;

/// Few passes at a low rate; scales are not to shrink, so nothing decays.
const FINE_TUNING: Schedule = Schedule { epochs: 5, batch: 32, peak: 2e-4, weight_decay: 0.0 };

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let digits = Digits::load(&backend::device(&options.backend)?);

    let dense = train(&digits.train, if options.verbose { Output::Verbose } else { Output::Quiet })?;
    print_scores("dense", &dense, &digits)?;

    let (compressed, _) = compress(dense, BITS)?;
    print_scores("compressed", &compressed, &digits)?;

    let tuned = improve(compressed.train(), &digits.train, &FINE_TUNING, Output::Verbose)?.valid();
    print_scores("fine-tuned", &tuned, &digits)
}

/// Prints loss and accuracy on both parts.
fn print_scores(name: &str, model: &Classifier, digits: &Digits) -> Result<()> {
    for (part, images) in [("train", &digits.train), ("test", &digits.test)] {
        let score = evaluate(model, images)?;
        println!("{name:10}  {part:5}  loss {:.5}  accuracy {:.2} %", score.loss, 100.0 * score.accuracy);
    }
    Ok(())
}
