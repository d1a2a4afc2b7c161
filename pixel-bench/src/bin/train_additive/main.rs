//! Trains the sub-dictionaries of one rate of the additive codec and writes them as Rust source.
//!
//! ```sh
//! cd pixel-core/src/codec/additive/dictionary
//! cargo run --release -p pixel-bench --bin train_additive -- --bits 2 --out m4.rs
//! ```
//!
//! Every shipped file is the output of this program; its head names the arguments. That takes seconds at 1 bit and
//! minutes at 4.
//!
//! The same arguments write the same bytes, on one platform: the normal samples go through its `exp` and `ln`.

mod lsq;

use anyhow::{Context, ensure};
use clap::Parser;
use lsq::Schedule;
use pixel_core::codec::additive::Patterns;
use pixel_core::codec::additive::dictionary::{self, RATES, STEP, SubDictionary};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

/// Groups that the error is measured on. No training sees them.
const HELD_OUT: usize = 1 << 16;

/// The seed of the held-out groups.
const HELD_OUT_SEED: u64 = u64::MAX;

/// Trains the sub-dictionaries of one rate of the additive codec.
#[derive(Debug, Parser)]
struct Args {
    /// Bits per weight.
    #[arg(long)]
    bits: f64,
    /// Seed of the first patterns and of the training groups.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of encoding and fitting.
    #[arg(long, default_value_t = 800)]
    rounds: u32,
    /// Groups of the first round.
    #[arg(long, default_value_t = 1 << 12)]
    first_groups: u32,
    /// Groups of the last round.
    #[arg(long, default_value_t = 1 << 16)]
    last_groups: u32,
    /// Sums that the search keeps while training: the default of the codec, which the dictionary fits itself to.
    #[arg(long, default_value_t = 16)]
    beam: usize,
    /// The source file to write.
    #[arg(long)]
    out: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(RATES.contains(&args.bits), "the rates are {RATES:?}");
    let schedule = Schedule {
        rounds: args.rounds,
        first_groups: args.first_groups,
        last_groups: args.last_groups,
        beam: args.beam,
    };
    let start = Instant::now();
    let trained = lsq::train((2.0 * args.bits) as usize, &schedule, &mut ChaCha8Rng::seed_from_u64(args.seed));
    println!("{} bits, seed {}: trained in {:.0} s", args.bits, args.seed, start.elapsed().as_secs_f64());

    let stored: Vec<SubDictionary> = trained.iter().map(to_steps).collect();
    let rounded: Vec<Patterns> = stored.iter().map(dictionary::to_weights).collect();
    let error = report(&trained, &rounded, args.beam);
    if let Some(out) = &args.out {
        std::fs::write(out, source(&args, error, &stored)).with_context(|| format!("writing {}", out.display()))?;
    }
    Ok(())
}

/// The nearest multiples of [`STEP`] that a byte holds.
fn to_steps(patterns: &Patterns) -> SubDictionary {
    patterns.map(|pattern| pattern.map(|weight| (weight / STEP).round().clamp(-127.0, 127.0) as i8))
}

/// Prints error and speed at each beam, and returns the error at `beam`.
fn report(trained: &[Patterns], rounded: &[Patterns], beam: usize) -> f64 {
    let groups = lsq::gaussian(HELD_OUT, &mut ChaCha8Rng::seed_from_u64(HELD_OUT_SEED));
    let error = |dictionary, beam| lsq::relative_mse(dictionary, &groups, &lsq::encode(dictionary, beam, &groups));
    for beam in [1, 2, 4, 8, 16, 32, 64] {
        let start = Instant::now();
        let error = error(rounded, beam);
        let speed = groups.as_flattened().len() as f64 / start.elapsed().as_secs_f64() / 1e6;
        println!("beam {beam:2}: relative MSE {error:.5}, {speed:.2} million weights a second");
    }
    let stored = error(rounded, beam);
    println!("before rounding: {:.6}, after: {stored:.6}", error(trained, beam));
    stored
}

/// The source file of `sub_dictionaries`, as rustfmt would have it.
fn source(args: &Args, error: f64, sub_dictionaries: &[SubDictionary]) -> String {
    let Args { bits, seed, rounds, first_groups, last_groups, beam, .. } = args;
    let mut text = format!(
        "//! Written by `train_additive --bits {bits} --seed {seed} --rounds {rounds} --first-groups {first_groups} \
         --last-groups {last_groups}\n//! --beam {beam}`: relative MSE {error:.5} on held-out Gaussian groups.\n\n\
         use super::SubDictionary;\n\npub(super) static PATTERNS: [SubDictionary; {}] = [\n",
        sub_dictionaries.len()
    );
    for patterns in sub_dictionaries {
        text.push_str("    [\n");
        for pattern in patterns {
            writeln!(text, "        {pattern:?},").expect("a string takes any text");
        }
        text.push_str("    ],\n");
    }
    text + "];\n"
}
