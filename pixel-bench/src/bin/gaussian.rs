//! The rate-distortion table on a Gaussian source: every codec at every rate.
//!
//! `cargo run --release -p pixel-bench --bin gaussian`

use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use pixel_bench::gaussian;
use pixel_core::codec::FAMILIES;
use pixel_core::{CodecSpec, compress_weight};
use std::time::Instant;

/// Prints the relative mean squared error and the encoding rate of codecs on independent normal weights
#[derive(Debug, Parser)]
struct Args {
    /// Codecs such as trellis:2:window=12; every codec at every rate if none is given
    codecs: Vec<CodecSpec>,
    /// Rows of the matrix
    #[arg(long, default_value_t = 512)]
    rows: usize,
    /// Columns of the matrix
    #[arg(long, default_value_t = 2048)]
    cols: usize,
    /// Seed of the weights
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let weight = gaussian(args.rows, args.cols, args.seed);
    let specs = if args.codecs.is_empty() { all_specs() } else { args.codecs };
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["codec", "bits/weight", "relative MSE", "Shannon 2^(-2R)", "weights/s, one core"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    // Some codecs spread a weight over the pool.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    for spec in specs {
        let start = Instant::now();
        let (packed, error) = pool.install(|| compress_weight(weight.as_ref(), &spec, None))?;
        let rate = weight.shape().num_weights() as f64 / start.elapsed().as_secs_f64();
        table.add_row([
            spec.to_string(),
            format!("{:.3}", packed.bits_per_weight()),
            format!("{:.5}", error.relative_mse()),
            format!("{:.5}", (-2.0 * spec.bits).exp2()),
            format!("{:.2} M", rate / 1e6),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// Every family at every rate; the trellis with windows of 12 and 16 bits.
fn all_specs() -> Vec<CodecSpec> {
    let rates =
        FAMILIES.iter().flat_map(|family| family.rates().iter().map(|&bits| CodecSpec::new(family.name(), bits)));
    rates
        .flat_map(|spec| match spec.codec.as_str() {
            "trellis" => vec![spec.clone().with_option("window", 12), spec],
            _ => vec![spec],
        })
        .collect()
}
