//! The search for the trellis's multipliers: random odd numbers, the best eighth kept and measured on four times as
//! many weights, until few are left.
//!
//! The constants of `pixel_core::codec::trellis::patterns` come from
//! `cargo run --release -p pixel-bench --bin search_multipliers -- --bits 1.5,2,2.5` and the same with `--bits 3,4`.

use clap::Parser;
use pixel_bench::gaussian;
use pixel_core::Matrix;
use pixel_core::codec::trellis::patterns::{Hash, Step};
use pixel_core::codec::trellis::with_hash;
use pixel_core::codec::{Codec, RowScaling};
use rand::{Rng, SeedableRng};

/// Ranks multipliers by the geometric mean of the relative mean squared errors over rates and windows
#[derive(Debug, Parser)]
struct Args {
    /// Rates, all below 3 bits or none
    #[arg(long, value_delimiter = ',', default_values_t = [1.5, 2.0, 2.5])]
    bits: Vec<f64>,
    /// Bits of the trellis state
    #[arg(long, value_delimiter = ',', default_values_t = [12, 16])]
    windows: Vec<u32>,
    /// Candidates in addition to the present constant
    #[arg(long, default_value_t = 1500)]
    candidates: usize,
    /// Columns of the first sample, of 32 rows
    #[arg(long, default_value_t = 512)]
    columns: usize,
    /// Candidates that no round goes below
    #[arg(long, default_value_t = 16)]
    keep: usize,
    /// Seed of candidates and weights
    #[arg(long, default_value_t = 77)]
    seed: u64,
}

/// Rounds after the first.
const ROUNDS: u32 = 2;

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let weights = Step::for_rate(args.bits[0]).weights;
    anyhow::ensure!(args.bits.iter().all(|&bits| Step::for_rate(bits).weights == weights), "rates of two step kinds");
    let present = Hash::new(weights).multiplier;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(args.seed);
    let mut candidates = vec![present];
    candidates.extend((0..args.candidates).map(|_| rng.next_u32() | 1).filter(|&candidate| candidate != present));
    for round in 0..=ROUNDS {
        let columns = args.columns << (2 * round);
        let sample = gaussian(32, columns, args.seed + u64::from(round));
        let mut ranked: Vec<(f64, u32)> = candidates
            .iter()
            .map(|&multiplier| (mean_log_error(&args, Hash { multiplier, weights }, &sample), multiplier))
            .collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!(
            "{} candidates on {} weights; median {:.5}",
            ranked.len(),
            32 * columns,
            ranked[ranked.len() / 2].0.exp()
        );
        for (error, multiplier) in ranked.iter().take(8) {
            let mark = if *multiplier == present { " (present)" } else { "" };
            println!("  {multiplier:#010x} {:.5}{mark}", error.exp());
        }
        candidates = ranked.iter().take((ranked.len() / 8).max(args.keep)).map(|candidate| candidate.1).collect();
        if !candidates.contains(&present) {
            candidates.push(present);
        }
    }
    Ok(())
}

/// The mean logarithm of the relative error over all rates and windows.
fn mean_log_error(args: &Args, hash: Hash, sample: &Matrix) -> f64 {
    let pairs = args.bits.iter().flat_map(|&bits| args.windows.iter().map(move |&window| (bits, window)));
    let logs: Vec<f64> =
        pairs.map(|(bits, window)| relative_error(&*with_hash(hash, bits, window), sample).ln()).collect();
    logs.iter().sum::<f64>() / logs.len() as f64
}

/// The relative error after one best scale, `1 − ⟨w, ŵ⟩² / (‖w‖²·‖ŵ‖²)`, of weights scaled as the codec asks for.
fn relative_error(codec: &dyn Codec, sample: &Matrix) -> f64 {
    let shape = sample.shape();
    let width = codec.block_width(shape);
    let factor = match codec.row_scaling() {
        RowScaling::RootMeanSquare(factor) => factor,
        RowScaling::None => 1.0,
    };
    let mut encoder = codec.encoder(sample.as_ref()).into_blocks().expect("tiles");
    let mut values = vec![0.0; shape.d_output() * width];
    let mut decoded = values.clone();
    let (mut ww, mut wd, mut dd) = (0.0, 0.0, 0.0);
    for block in 0..shape.d_input() / width {
        sample.as_ref().copy_columns(block * width, &mut values);
        values.iter_mut().for_each(|value| *value /= factor);
        encoder.encode_block(block, &values, &mut decoded);
        for (&w, &d) in values.iter().zip(&decoded) {
            let (w, d) = (f64::from(w), f64::from(d));
            ww += w * w;
            wd += w * d;
            dd += d * d;
        }
    }
    1.0 - wd * wd / (ww * dd)
}
