//! How damping changes what error feedback loses on text that it has not seen.
//!
//! With `H + λ·I = L·D·Lᵀ` from one text and `H'` from another, errors that are white before they are fed back cost
//! `tr(L⁻¹·H'·L⁻ᵀ)` of the outputs' power after, `tr(H')` without feedback. The table has the quotient for `λ` as by
//! default, for multiples of it, and for a hundredth of the mean diagonal: above 1 feedback does harm.
//!
//! `pixel calibrate MODEL -t A --tokens N -o a.safetensors`, the same for another text, then
//! `cargo run --release -p pixel-bench --bin damping -- a.safetensors b.safetensors`.

use anyhow::{Context, ensure};
use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::{Mat, Par, Side};
use pixel_core::archive::calibration::Calibration;
use pixel_core::{Moments, Rotation};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Multiples of the damping by default.
const MULTIPLES: [f64; 7] = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

#[derive(Debug, Parser)]
#[command(about = "What error feedback loses on text that it has not seen, by damping")]
struct Args {
    /// The calibration that feedback goes by.
    known: PathBuf,
    /// The calibration on other text that it is judged by.
    unseen: PathBuf,
    /// Widths above this are left out.
    #[arg(long, default_value_t = 1536)]
    widest: usize,
    /// Print every weight.
    #[arg(long)]
    weights: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let (known, unseen) = (Calibration::open(&args.known)?, Calibration::open(&args.unseen)?);
    let groups = known.description().groups.iter().filter(|(_, group)| group.d_input <= args.widest);
    let rows = groups.collect::<Vec<_>>().into_par_iter().map(|(name, group)| {
        let (Some(known), Some(unseen)) = (known.moments(name)?, unseen.moments(name)?) else { return Ok(None) };
        ensure!(known.d_input() == unseen.d_input(), "group \"{name}\" has another width in the other file");
        let rotation = Rotation::new(known.d_input(), 0);
        let losses = losses(&known.rotated(&rotation), &unseen.rotated(&rotation)).context(name.clone())?;
        Ok(Some((name, group.d_input, losses)))
    });
    let rows: Vec<_> = rows.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect();
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    let heads = MULTIPLES.map(|multiple| format!("{multiple} × default"));
    table
        .set_header(["weights", "width"].map(str::to_owned).into_iter().chain(heads).chain([".01 of the mean".into()]));
    let mut line = |name: String, width: usize, losses: &[f64]| {
        table.add_row([name, width.to_string()].into_iter().chain(losses.iter().map(|loss| format!("{loss:.3}"))));
    };
    let mut widths: BTreeMap<usize, Vec<&Vec<f64>>> = BTreeMap::new();
    for (name, width, losses) in &rows {
        widths.entry(*width).or_default().push(losses);
        if args.weights {
            line((*name).clone(), *width, losses);
        }
    }
    for (width, all) in &widths {
        let mean = |at: usize| all.iter().map(|losses| losses[at]).sum::<f64>() / all.len() as f64;
        line(format!("mean of {}", all.len()), *width, &(0..=MULTIPLES.len()).map(mean).collect::<Vec<_>>());
    }
    println!("{table}");
    Ok(())
}

/// The loss for each multiple of the damping by default, and for a hundredth of the mean.
fn losses(known: &Moments, unseen: &Moments) -> anyhow::Result<Vec<f64>> {
    let mean = known.mean_diagonal();
    let default = known.unseen_power().max(0.01 * mean);
    let dampings = MULTIPLES.iter().map(|multiple| multiple * default).chain([0.01 * mean]);
    dampings.map(|damping| loss(known, unseen, damping)).collect()
}

/// `tr(L⁻¹·H'·L⁻ᵀ) / tr(H')`, columns taken from the last to the first.
fn loss(known: &Moments, unseen: &Moments, damping: f64) -> anyhow::Result<f64> {
    let n = known.d_input();
    let place = |i: usize| n - 1 - i;
    let damped = |i: usize, j: usize| known.at(place(i), place(j)) + if i == j { damping } else { 0.0 };
    let factor = Mat::<f64>::from_fn(n, n, damped).llt(Side::Lower);
    let factor =
        factor.map_err(|error| anyhow::anyhow!("not positive definite with damping {damping:e}: {error:?}"))?;
    let factor = factor.L();
    // With C·Cᵀ = H + λ·I and L = C·diag(C)⁻¹, L⁻¹·H'·L⁻ᵀ is C⁻¹·H'·C⁻ᵀ, each row and column times C's diagonal.
    let mut half = Mat::<f64>::from_fn(n, n, |i, j| unseen.at(place(i), place(j)));
    solve_lower_triangular_in_place(factor, half.as_mut(), Par::Seq);
    let mut whole = half.transpose().to_owned();
    solve_lower_triangular_in_place(factor, whole.as_mut(), Par::Seq);
    let fed_back: f64 = (0..n).map(|i| whole[(i, i)] * factor[(i, i)] * factor[(i, i)]).sum();
    Ok(fed_back / (n as f64 * unseen.mean_diagonal()))
}
