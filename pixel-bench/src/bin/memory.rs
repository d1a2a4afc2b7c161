//! What the parts of a running model take, measured on the heap, against the targets that the project set itself:
//! dictionary 100 MB, the cache of synthesised weights 200 MB. (A third target, 50 MB for a network that picks
//! patterns, waits for such a network.)
//!
//! `cargo run --release -p pixel-bench --bin memory` fills each part to what its configuration allows: a dictionary
//! with all the patterns that it has room for; a cache that more layers go through than fit. It ends with an error if a
//! part takes more than its target.

use anyhow::{Result, ensure};
use burn::tensor::{Device, Tensor};
use clap::{Parser, ValueEnum};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use peak_alloc::PeakAlloc;
use pixel_core::{PIXELConfig, Shape};
use pixel_nn::{PIXELLinear, PIXELLinearConfig, SynthesisMode, WeightCache};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// A megabyte, as the targets count.
const MB: usize = 1_000_000;

/// Measures what dictionary and cache take
#[derive(Debug, Parser)]
struct Args {
    /// The configuration
    #[arg(long, value_enum, default_value_t = Preset::Large)]
    preset: Preset,
    /// The budget of the cache in MB
    #[arg(long, default_value_t = 200)]
    cache: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Preset {
    /// `PIXELConfig::for_small_model`
    Small,
    /// `PIXELConfig::for_large_model`
    Large,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let config = match args.preset {
        Preset::Small => PIXELConfig::for_small_model(),
        Preset::Large => PIXELConfig::for_large_model(),
    };
    let dictionary = dictionary(&config)?;
    let cache = cache(args.cache * MB)?;
    let rows = [("dictionary", 100, dictionary), ("runtime cache", 200, cache), ("total", 300, dictionary + cache)];
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["part", "target, MB", "measured, MB", ""]);
    table.column_iter_mut().skip(1).take(2).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for (part, target, bytes) in rows {
        let verdict = if bytes <= target * MB { "within" } else { "EXCEEDED" };
        table.add_row([
            part.to_owned(),
            target.to_string(),
            format!("{:.1}", bytes as f64 / MB as f64),
            verdict.into(),
        ]);
    }
    println!("{table}");
    let exceeded = rows.iter().find(|(_, target, bytes)| *bytes > target * MB);
    ensure!(exceeded.is_none(), "a target is exceeded");
    Ok(())
}

/// The heap that what `make` returns takes.
fn heap_of<T>(make: impl FnOnce() -> Result<T>) -> Result<(usize, T)> {
    let before = HEAP.current_usage();
    let made = make()?;
    Ok((HEAP.current_usage().saturating_sub(before), made))
}

/// A dictionary that is full, its patterns widened in its cache.
fn dictionary(config: &PIXELConfig) -> Result<usize> {
    let (bytes, dictionary) = heap_of(|| {
        let mut dictionary = config.dictionary()?;
        let side = config.compression.pattern_sizes.last().copied().unwrap_or(1);
        let shape = Shape::new(side, side)?;
        let room = config.memory_budget().dictionary / (2 * shape.num_weights());
        dictionary.generate_random_patterns(shape, u16::try_from(room).unwrap_or(u16::MAX))?;
        for id in dictionary.ids(shape).to_vec() {
            dictionary.get(id)?;
        }
        Ok(dictionary)
    })?;
    ensure!(!dictionary.is_empty(), "a dictionary without patterns measures nothing");
    Ok(bytes)
}

/// The dense weights that a cache holds after layers have run whose weights take half as much again as it may.
fn cache(budget: usize) -> Result<usize> {
    const SIDE: usize = 1024;
    let device = Device::flex();
    let cache = WeightCache::new(budget);
    let layer = || -> PIXELLinear {
        let config =
            PIXELLinearConfig::new(SIDE, SIDE).with_bias(false).with_codec("trellis:2".parse().expect("a codec"));
        config.init(&device).with_synthesis(SynthesisMode::Cached(cache.clone()))
    };
    let layers: Vec<_> = (0..budget * 3 / 2 / (4 * SIDE * SIDE) + 1).map(|_| layer()).collect();
    let (bytes, ()) = heap_of(|| {
        for layer in &layers {
            layer.forward(Tensor::<2>::ones([1, SIDE], &device));
        }
        Ok(())
    })?;
    ensure!(cache.used_bytes() <= budget, "the cache says {} bytes, its budget is {budget}", cache.used_bytes());
    Ok(bytes)
}
