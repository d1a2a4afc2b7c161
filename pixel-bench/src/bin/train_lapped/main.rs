//! Trains the patterns of one rate of the lapped codec and writes them as Rust source.
//!
//! ```sh
//! cd pixel-core/src/codec/lapped/dictionary
//! cargo run --release -p pixel-bench --bin train_lapped -- --bits 2 --out m4.rs
//! ```
//!
//! Every shipped file is the output of this program, formatted; its head names the arguments. That takes minutes.
//!
//! The same arguments write the same bytes, on one platform: the normal samples go through its `exp` and `ln`.

mod lsq;

use anyhow::{Context, ensure};
use clap::Parser;
use lsq::Code;
use pixel_core::codec::lapped::dictionary::{RATES, Rate, STEP, to_weights};
use pixel_core::codec::lapped::search::Lookahead;
use pixel_core::codec::nibble::PATTERNS;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Rows of 1024 weights that the error is measured on. No training sees them.
const HELD_OUT: usize = 256;

/// The seed of the held-out rows.
const HELD_OUT_SEED: u64 = u64::MAX;

/// Trains the patterns of one rate of the lapped codec.
#[derive(Debug, Parser)]
struct Args {
    /// Bits per weight.
    #[arg(long)]
    bits: f64,
    /// Seed of the first patterns and of the training rows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Random starts, of which the best goes on.
    #[arg(long, default_value_t = 6)]
    starts: u32,
    /// Rounds of encoding and fitting for each start.
    #[arg(long, default_value_t = 25)]
    first_rounds: u32,
    /// Rounds for the best.
    #[arg(long, default_value_t = 150)]
    rounds: u32,
    /// Rows of 1024 weights that each round sees, new ones each time.
    #[arg(long, default_value_t = 200)]
    rows: usize,
    /// Paths that the search keeps while training.
    #[arg(long, default_value_t = 256)]
    beam: usize,
    /// The length of a window; that of the codec if not given.
    #[arg(long)]
    span: Option<usize>,
    /// What a squared residual counts in a column that later nibbles reach; as the codec has it if not given.
    #[arg(long)]
    lookahead: Option<f32>,
    /// Columns that are looked at; as the codec has it if not given.
    #[arg(long)]
    columns: Option<usize>,
    /// The source file to write.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let Some(rate) = Rate::of(args.bits) else { anyhow::bail!("the rates are {RATES:?}") };
    let lookahead = Lookahead {
        weight: args.lookahead.unwrap_or(rate.lookahead.weight),
        columns: args.columns.unwrap_or(rate.lookahead.columns),
    };
    let span = args.span.unwrap_or(rate.span);
    ensure!(args.starts > 0, "--starts is {}, at least one is needed", args.starts);
    let start = Instant::now();
    let mut rng = ChaCha8Rng::seed_from_u64(args.seed);
    let mut best: Option<(f64, Code)> = None;
    for index in 0..args.starts {
        let mut code = Code::random(rate.per_eight(), span, lookahead, &mut rng);
        let error = train(&mut code, args.first_rounds, &args, &mut rng);
        println!("start {index}: relative MSE {error:.5}");
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, code));
        }
    }
    let (_, mut code) = best.context("no start")?;
    train(&mut code, args.rounds, &args, &mut rng);
    println!("{} bits, seed {}: trained in {:.0} s", args.bits, args.seed, start.elapsed().as_secs_f64());

    let halves = to_steps(&code);
    let rounded = Code { patterns: to_weights(&halves, span), ..code.clone() };
    let error = report(&code, &rounded, args.beam);
    if let Some(out) = &args.out {
        let text = source(&args, error, span, &halves);
        std::fs::write(out, text).with_context(|| format!("writing {}", out.display()))?;
    }
    Ok(())
}

/// The error of the last round.
fn train(code: &mut Code, rounds: u32, args: &Args, rng: &mut ChaCha8Rng) -> f64 {
    let mut error = f64::INFINITY;
    for _ in 0..rounds {
        let rows = lsq::gaussian(args.rows, rng);
        let codes;
        (codes, error) = code.encode(&rows, args.beam);
        code.fit(&rows, &codes);
    }
    error
}

/// The nearest multiples of [`STEP`] that a byte holds, of the first half of each sub-dictionary.
fn to_steps(code: &Code) -> Vec<i8> {
    let len = PATTERNS * code.layout.span();
    let halves = code.patterns.chunks_exact(len).flat_map(|patterns| &patterns[..len / 2]);
    halves.map(|weight| (weight / STEP).round().clamp(-127.0, 127.0) as i8).collect()
}

/// Prints error and speed at each beam, and returns the error at `beam`.
fn report(trained: &Code, rounded: &Code, beam: usize) -> f64 {
    let rows = lsq::gaussian(HELD_OUT, &mut ChaCha8Rng::seed_from_u64(HELD_OUT_SEED));
    for beam in [16, 32, 64, 128, 256, 512, 1024] {
        let start = Instant::now();
        let (_, error) = rounded.encode(&rows, beam);
        let speed = rows.as_slice().len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("beam {beam:4}: relative MSE {error:.5}, {speed:.3} million weights a second");
    }
    let stored = rounded.encode(&rows, beam).1;
    println!("before rounding: {:.6}, after: {stored:.6}", trained.encode(&rows, beam).1);
    stored
}

/// The source file of `halves`, for `cargo fmt` to fill the lines of.
fn source(args: &Args, error: f64, span: usize, halves: &[i8]) -> String {
    let Args { bits, seed, starts, first_rounds, rounds, rows, beam, .. } = args;
    let places = halves.len() / (PATTERNS / 2 * span);
    let mut text = format!(
        "//! Written by `train_lapped --bits {bits} --seed {seed} --starts {starts} --first-rounds {first_rounds} \
         --rounds {rounds}\n//! --rows {rows} --beam {beam}`: relative MSE {error:.5} on held-out Gaussian rows.\n\n\
         /// `[P, 8, S]`.\npub(super) const PATTERNS: [[[i8; {span}]; {}]; {places}] = [\n",
        PATTERNS / 2,
    );
    for patterns in halves.chunks_exact(PATTERNS / 2 * span) {
        text.push_str("    [\n");
        for pattern in patterns.chunks_exact(span) {
            writeln!(text, "        {pattern:?},").expect("a string takes any text");
        }
        text.push_str("    ],\n");
    }
    text + "];\n"
}
