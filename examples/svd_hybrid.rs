//! Low-rank parts in addition to patterns: where they pay, and where they do not.
//!
//! ```sh
//! cargo run --release --example svd_hybrid                                # made-up matrices, the quickstart's model
//! cargo run --release --example svd_hybrid -- models/all-MiniLM-L6-v2     # the first layers of any checkpoint
//! ```
//!
//! Each weight is compressed at 2 bits by patterns alone, with a part of rank 8 whatever it brings, and with the rank
//! that `auto` finds. A part pays if it beats what its bits would bring as patterns: four times less error for each.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use pixel_core::archive::Checkpoint;
use pixel_core::{LowRank, Matrix, Shape};
use pixel_experimental::{HybridWeight, LayerKind, RankChoice, SVDHybridCompressor, break_even};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::path::Path;

/// How many weights of a checkpoint are looked at.
const LAYERS: usize = 6;

fn main() -> Result<()> {
    let checkpoint = match std::env::args().nth(1) {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart/model"),
    };
    let mut weights = made_up()?;
    weights.extend(layers(&checkpoint)?);
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["weight", "rank", "bytes: factors + codes", "error²", "÷ patterns alone", "break-even", "pays"]);
    for (name, weight) in &weights {
        let compress = |rank| {
            let codec = "trellis:2:window=12".parse()?;
            anyhow::Ok(SVDHybridCompressor { rank, codec, ..Default::default() }.compress(weight, None)?)
        };
        let alone = compress(RankChoice::Never)?;
        for (how, rank) in [("8", RankChoice::Fixed(8)), ("auto", RankChoice::Auto)] {
            let found = compress(rank)?;
            let error = |w: &HybridWeight| w.reconstruction_error.powi(2);
            let extra = found.packed.bits_per_weight() - alone.packed.bits_per_weight();
            let (ratio, even) = (error(&found) / error(&alone), break_even(extra));
            let sizes = found.size_breakdown;
            let pays = if ratio < even { "yes" } else { "no" };
            table.add_row([
                format!("{name}, {}", weight.shape()),
                if how == "auto" { format!("auto: {}", found.svd_rank) } else { found.svd_rank.to_string() },
                format!("{} + {}", sizes.factors, sizes.total() - sizes.factors),
                format!("{:.4}", error(&found)),
                format!("{ratio:.3}"),
                format!("{even:.3}"),
                if found.svd_rank == 0 { "none" } else { pays }.to_owned(),
            ]);
        }
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    println!(
        "`pixel compress MODEL OUT --hybrid auto` does this for a whole checkpoint, with calibration if you have one."
    );
    Ok(())
}

/// A matrix of which a few directions hold most, and one of noise.
fn made_up() -> Result<Vec<(String, Matrix)>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // The sum of twelve uniform numbers: close enough to normal.
    let mut normal = || (0..12).map(|_| rng.next_u32() as f32 / 2f32.powi(32)).sum::<f32>() - 6.0;
    let mut gaussian = |rows: usize, columns: usize| -> Result<Matrix> {
        let values = (0..rows * columns).map(|_| normal()).collect();
        Ok(Matrix::new(Shape::new(rows, columns)?, values)?)
    };
    let noise = gaussian(512, 512)?;
    let (up, down) = (gaussian(512, 6)?, gaussian(6, 512)?);
    let mut strong = noise.clone();
    // Energy 6·½ next to 1: three quarters.
    LowRank { up, down }.add_scaled(&mut strong, 0.5f32.sqrt());
    Ok(vec![("rank 6 and noise".to_owned(), strong), ("noise".to_owned(), noise)])
}

/// The first matrices of layers in a checkpoint, one of each kind before a second of any.
fn layers(path: &Path) -> Result<Vec<(String, Matrix)>> {
    let checkpoint = Checkpoint::open(path).with_context(|| format!("{}: no checkpoint", path.display()))?;
    let is_layer = |name: &str, shape: &[usize]| {
        shape.len() == 2 && shape[0].min(shape[1]) > 8 && LayerKind::of(name) != LayerKind::Embedding
    };
    let names = checkpoint.tensors().iter().filter(|(name, info)| is_layer(name, &info.shape)).map(|(name, _)| name);
    let mut names: Vec<(usize, &String)> = Vec::from_iter(names.map(|name| (0, name)));
    for i in 0..names.len() {
        let kind = LayerKind::of(names[i].1);
        names[i].0 = names[..i].iter().filter(|(_, name)| LayerKind::of(name) == kind).count();
    }
    names.sort();
    let read = |(_, name): &(usize, &String)| {
        let shape = &checkpoint.info(name)?.shape;
        let weight = Matrix::new(Shape::new(shape[0], shape[1])?, checkpoint.to_f32(name)?)?;
        anyhow::Ok((name.trim_end_matches(".weight").to_owned(), weight))
    };
    names.iter().take(LAYERS).map(read).collect()
}
