//! Compresses the layers of a model that knows nothing of compression, and measures what it costs.
//!
//! ```sh
//! cargo run --release --example replace_layers
//! cargo run --release --example replace_layers --features wgpu -- --backend wgpu --verbose
//! ```
//!
//! A classifier of handwritten digits is trained, its `Linear` layers are replaced at 4, 3 and 2 bits a weight, and
//! each model is measured on the images that training did not see.

#[path = "common/backend.rs"]
mod backend;
mod digits;
#[path = "common/options.rs"]
mod options;

use std::time::Instant;

use anyhow::{Context, Result};
use burn::module::Module;
use comfy_table::{CellAlignment, Table, presets};

use digits::compress::compress;
use digits::data::Digits;
use digits::train::{Output, Score, evaluate, train};
use options::Options;
use pixel_nn::ReplacementReport;

/// Bits a weight to compress to.
const RATES: [f64; 3] = [4.0, 3.0, 2.0];

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let digits = Digits::load(&backend::device(&options.backend)?);

    let start = Instant::now();
    let model = train(&digits.train, if options.verbose { Output::Verbose } else { Output::Quiet })?;
    let seconds = start.elapsed().as_secs_f32();
    let (params, images) = (model.num_params(), digits.train.len());
    println!("{params} parameters trained on {images} images in {seconds:.1} s, on {}\n", options.backend);

    let mut results = Vec::new();
    for bits in RATES {
        let (model, report) = compress(model.clone(), bits)?;
        results.push((bits, report, evaluate(&model, &digits.test)?));
    }
    println!("{}", summary(evaluate(&model, &digits.test)?, &results)?);
    println!(
        "Bits per weight, bytes and error are those of the linear layers, scales counted; accuracy and loss those of"
    );
    println!("{} images that training did not see.\n", digits.test.len());

    let (bits, report, _) = results.last().context("no rates")?;
    println!("The layers at {bits} bits:\n{report}");
    Ok(())
}

/// A row for the dense model and one for each rate.
fn summary(dense: Score, results: &[(f64, ReplacementReport, Score)]) -> Result<Table> {
    let mut table =
        table(["model", "bits/weight", "layers, bytes", "× smaller", "relative error", "test accuracy", "test loss"]);
    let (_, report, _) = results.first().context("no rates")?;
    let original = report.original_bytes();
    let mut row = |name: &str, bits: f64, stored: usize, error: f64, score: Score| {
        table.add_row([
            name.to_owned(),
            format!("{bits:.3}"),
            stored.to_string(),
            format!("{:.2}", original as f64 / stored as f64),
            format!("{error:.5}"),
            format!("{:.2} %", 100.0 * score.accuracy),
            format!("{:.4}", score.loss),
        ]);
    };
    row("dense", 32.0, original, 0.0, dense);
    for (bits, report, score) in results {
        let (rate, error) = (report.bits_per_weight(), report.relative_error());
        row(&format!("{bits} bits"), rate, report.stored_bytes(), error, *score);
    }
    Ok(table)
}

/// An empty table, its numbers on the right.
fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(header);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}
