//! Low-rank parts in addition to codes, on matrices with a spectrum of their own and on those of a model: who wins at
//! equal bits.
//!
//! ```text
//! cargo run --release -p pixel-bench --bin hybrid -- [--model models/all-MiniLM-L6-v2 --calibration stats.safetensors]
//! ```
//!
//! A loss is `tr((W−Ŵ)·H·(W−Ŵ)ᵀ)/tr(W·H·Wᵀ)`. `ratio` is that of the hybrid over that of codes alone at the same rate;
//! it wins below the break-even `4^(−Δ)`, at which `Δ` bits more of codes would do as well. `codes` is what they really
//! do with these bits, between two rates of the codec by the logarithm of the loss.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use pixel_bench::matrices::gaussian;
use pixel_core::archive::Checkpoint;
use pixel_core::archive::calibration::Calibration;
use pixel_core::{CodecSpec, FeedbackOptions, LowRank, Matrix, Moments, Rotation, Shape};
use pixel_experimental::{RankChoice, SVDHybridCompressor, break_even};
use std::path::PathBuf;

/// Compares low-rank parts in addition to codes with more codes
#[derive(Debug, Parser)]
struct Args {
    /// Codec of what the low-rank part leaves
    #[arg(long, default_value = "trellis:2:window=12")]
    codec: CodecSpec,
    /// Ranks that are tried whether they promise anything or not
    #[arg(long, value_delimiter = ',', default_values_t = [8, 32])]
    ranks: Vec<usize>,
    /// Side of the synthetic matrices; 0 for none
    #[arg(long, default_value_t = 1024)]
    side: usize,
    /// A checkpoint, some of whose weights are compressed too
    #[arg(long, requires = "calibration")]
    model: Option<PathBuf>,
    /// What its layers read, from `pixel calibrate --weighting uniform`
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// The same from other texts, on which losses are measured; those of the calibration itself without it
    #[arg(long)]
    held_out: Option<PathBuf>,
    /// Which weights: those whose names contain one of these
    #[arg(long, value_delimiter = ',', default_values_t = WEIGHTS.map(str::to_owned))]
    weights: Vec<String>,
}

/// Query, output, and both layers of the MLP in the first layer and one of the middle of MiniLM.
const WEIGHTS: [&str; 8] = [
    "layer.0.attention.self.query.weight",
    "layer.0.attention.output.dense.weight",
    "layer.0.intermediate.dense.weight",
    "layer.0.output.dense.weight",
    "layer.3.attention.self.query.weight",
    "layer.3.attention.output.dense.weight",
    "layer.3.intermediate.dense.weight",
    "layer.3.output.dense.weight",
];

/// A weight with the moments that errors are fed back through, and those by which losses are measured.
struct Subject {
    name: String,
    weight: Matrix,
    moments: Moments,
    held_out: Moments,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut subjects = if args.side > 0 { synthetic(args.side)? } else { Vec::new() };
    if let (Some(model), Some(calibration)) = (&args.model, &args.calibration) {
        subjects.extend(real(&args, model, calibration)?);
    }
    ensure!(!subjects.is_empty(), "nothing to compress: --side is 0 and there is no --model");
    let mut worst: f64 = 0.0;
    for feedback in [true, false] {
        println!("### {} {} error feedback\n", args.codec, if feedback { "with" } else { "without" });
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN);
        table.set_header(["matrix", "rank", "extra bits", "ratio", "codes", "break-even", "verdict"]);
        for subject in &subjects {
            worst = worst.max(compare(&args, subject, feedback.then_some(FeedbackOptions::DEFAULT), &mut table)?);
        }
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        println!("{table}\n");
    }
    println!("the worst of `auto`: {worst:.4} of what the same bits of codes would leave");
    Ok(())
}

/// Adds the rows of one matrix; returns the loss of `auto` over what its bits would leave as codes, by either account.
fn compare(args: &Args, subject: &Subject, feedback: Option<FeedbackOptions>, table: &mut Table) -> Result<f64> {
    let hybrid = |rank, codec: CodecSpec| -> Result<(usize, f64, f64)> {
        let compressor = SVDHybridCompressor { rank, codec, feedback, ..Default::default() };
        let found = compressor.compress(&subject.weight, Some(&subject.moments))?;
        let dense = compressor.decompress(&found);
        let loss = subject.held_out.output_error(subject.weight.as_ref(), dense.as_ref()).relative_mse();
        Ok((found.svd_rank, found.packed.bits_per_weight(), loss))
    };
    let (_, bits, never) = hybrid(RankChoice::Never, args.codec.clone())?;
    let rates = args.codec.family()?.rates();
    let higher = rates.iter().copied().find(|&rate| rate > args.codec.bits);
    // By how much the logarithm of the loss falls with each bit.
    let slope = match higher {
        None => None,
        Some(rate) => {
            let (_, more, loss) = hybrid(RankChoice::Never, CodecSpec { bits: rate, ..args.codec.clone() })?;
            Some((loss / never).ln() / (more - bits))
        }
    };
    let choices = args.ranks.iter().map(|&rank| RankChoice::Fixed(rank)).chain([RankChoice::Auto]);
    let mut result = 1.0;
    for choice in choices {
        let (rank, total, loss) = hybrid(choice, args.codec.clone())?;
        let (extra, ratio) = (total - bits, loss / never);
        let even = break_even(extra);
        let is_auto = choice == RankChoice::Auto;
        if is_auto {
            let codes = slope.map_or(even, |slope| (slope * extra).exp());
            result = ratio / even.min(codes);
        }
        table.add_row([
            format!("{}, {}", subject.name, subject.weight.shape()),
            if is_auto { format!("auto: {rank}") } else { rank.to_string() },
            format!("{extra:.3}"),
            format!("{ratio:.3}"),
            slope.map_or("-".to_owned(), |slope| format!("{:.3}", (slope * extra).exp())),
            format!("{even:.3}"),
            if rank == 0 {
                "none"
            } else if ratio < even {
                "wins"
            } else {
                "loses"
            }
            .to_owned(),
        ]);
    }
    Ok(result)
}

/// Gaussian, with spikes, and with large columns; inputs whose power falls as `1/i` along the axes of a random basis.
fn synthetic(side: usize) -> Result<Vec<Subject>> {
    let moments = {
        let powers = (0..side).flat_map(|i| (0..=i).map(move |j| if i == j { 1.0 / (1.0 + i as f64) } else { 0.0 }));
        Moments::from_lower_triangle(side, powers).rotated(&Rotation::new(side, 77))
    };
    let spike = |rank: usize, share: f64| -> Result<Matrix> {
        let mut weight = gaussian(side, side, 1);
        let part = LowRank { up: gaussian(side, rank, 2), down: gaussian(rank, side, 3) };
        part.add_scaled(&mut weight, (share / (1.0 - share) / rank as f64).sqrt() as f32);
        Ok(weight)
    };
    let mut outliers = gaussian(side, side, 1);
    let large = 8.min(side);
    // Eight columns with 60 % of the energy.
    let factor = (1.5 * (side - large) as f64 / large as f64).sqrt() as f32;
    for row in outliers.as_mut_slice().chunks_exact_mut(side) {
        (0..large).for_each(|i| row[(i * side / large + 3).min(side - 1)] *= factor);
    }
    let rank = 16.min(side);
    let weights = [
        ("Gaussian", gaussian(side, side, 1)),
        ("spike of rank 16, 30 %", spike(rank, 0.3)?),
        ("spike of rank 16, 60 %", spike(rank, 0.6)?),
        ("8 large columns, 60 %", outliers),
    ];
    let subject = |(name, weight): (&str, Matrix)| Subject {
        name: name.to_owned(),
        weight,
        moments: moments.clone(),
        held_out: moments.clone(),
    };
    Ok(weights.into_iter().map(subject).collect())
}

fn real(args: &Args, model: &std::path::Path, calibration: &std::path::Path) -> Result<Vec<Subject>> {
    let checkpoint = Checkpoint::open(model)?;
    let calibration = Calibration::open(calibration)?;
    let held_out = args.held_out.as_deref().map(Calibration::open).transpose()?;
    let names = checkpoint.tensors().keys().filter(|name| args.weights.iter().any(|part| name.contains(part.as_str())));
    let subjects = names.map(|name| {
        let info = checkpoint.info(name)?;
        ensure!(info.shape.len() == 2, "{name} is no matrix");
        let weight = Matrix::new(Shape::new(info.shape[0], info.shape[1])?, checkpoint.to_f32(name)?)?;
        let of = |calibration: &Calibration| {
            calibration.moments(name)?.with_context(|| format!("the calibration does not know {name}"))
        };
        let moments = of(&calibration)?;
        let held_out = held_out.as_ref().map_or_else(|| Ok(moments.clone()), of)?;
        let short = name.trim_start_matches("encoder.").trim_end_matches(".weight").to_owned();
        Ok(Subject { name: short, weight, moments, held_out })
    });
    let subjects = subjects.collect::<Result<Vec<_>>>()?;
    ensure!(!subjects.is_empty(), "{}: no weight is called {}", model.display(), args.weights.join(" or "));
    Ok(subjects)
}
