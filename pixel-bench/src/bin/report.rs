//! One table of ratios: how many times as fast as the fastest dense product every compressed one is, all of them timed
//! in turns in one run.
//!
//! `cargo run --release -p pixel-bench --bin report` prints it for one thread; see `docs/performance.md` for how to
//! read it.

use anyhow::{Context, Result};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use pixel_bench::contenders::{Contender, Kind, Size, all, form, kernel};
use pixel_bench::measure::{in_turns, median, speedup};
use pixel_bench::roofline::{Point, draw};
use pixel_bench::{BATCHES, SHAPES, stream};
use pixel_core::math::simd::{Simd, SimdLevel};
use pixel_core::synthesis::Arithmetic;
use std::path::PathBuf;
use std::process::Command;

/// Compares compressed products with dense ones
#[derive(Debug, Parser)]
struct Args {
    /// Threads of every contender
    #[arg(long, default_value_t = 1, value_parser = positive)]
    threads: usize,
    /// Rounds in which every contender has a turn
    #[arg(long, default_value_t = 7, value_parser = positive)]
    rounds: usize,
    /// Shapes, as ROWSxCOLUMNS; all if none is given
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<String>,
    /// Batches; 1, 8 and 128 if none is given
    #[arg(long, value_delimiter = ',', value_parser = positive)]
    batches: Vec<usize>,
    /// Skip what runs more than this many times as slow as the fastest dense product
    #[arg(long, default_value_t = f64::INFINITY)]
    slowest: f64,
    /// Where the roofline of batch 1 at the first shape is drawn
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// The variable by which rayon, and those who follow it, choose how many threads they have.
const THREADS: &str = "RAYON_NUM_THREADS";

fn main() -> Result<()> {
    let args = Args::parse();
    // Every library that is compared reads the variable when it starts.
    if std::env::var(THREADS).ok() != Some(args.threads.to_string()) {
        let program = std::env::current_exe().context("the path of this program")?;
        let status =
            Command::new(program).args(std::env::args_os().skip(1)).env(THREADS, args.threads.to_string()).status()?;
        std::process::exit(status.code().unwrap_or(1));
    }
    let shapes = shapes(&args)?;
    let batches = if args.batches.is_empty() { BATCHES.to_vec() } else { args.batches.clone() };
    let bandwidth = stream::read_bandwidth();
    println!(
        "{} thread(s), instructions up to {:?}; memory is read at 1 (the unit of the last column)\n",
        args.threads,
        Simd::detect().level()
    );
    for (i, &[d_output, d_input]) in shapes.iter().enumerate() {
        for &batch in &batches {
            let size = Size { d_output, d_input, batch };
            let points = compare(size, &args, bandwidth);
            if let Some(path) = args.svg.as_ref().filter(|_| i == 0 && batch == batches[0]) {
                draw(
                    path,
                    &format!("{d_output} × {d_input}, batch {batch}, {} thread(s)", args.threads),
                    bandwidth,
                    &points,
                )?;
                println!("roofline: {}\n", path.display());
            }
        }
    }
    rounding(shapes[0])?;
    if args.threads == 1 && std::thread::available_parallelism()?.get() > 1 {
        scaling(&shapes, args.rounds)?;
    }
    Ok(())
}

/// A count of something that there is.
fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|count| *count > 0).ok_or_else(|| "a number from 1 on is needed".to_owned())
}

fn shapes(args: &Args) -> Result<Vec<[usize; 2]>> {
    if args.shapes.is_empty() {
        return Ok(SHAPES.to_vec());
    }
    let parse = |text: &String| {
        let sides = text.split_once('x').and_then(|(rows, cols)| Some([rows.parse().ok()?, cols.parse().ok()?]));
        sides
            .filter(|sides: &[usize; 2]| !sides.contains(&0))
            .with_context(|| format!("{text:?} is no shape like 4096x11008"))
    };
    args.shapes.iter().map(parse).collect()
}

/// Times all contenders and prints their table.
fn compare(size: Size, args: &Args, bandwidth: f64) -> Vec<Point> {
    let mut contenders = all(size);
    let times = {
        let mut runs: Vec<_> = contenders.iter_mut().map(|contender| || contender.run()).collect();
        let mut runs: Vec<&mut dyn FnMut()> = runs.iter_mut().map(|run| run as &mut dyn FnMut()).collect();
        in_turns(&mut runs, args.rounds)
    };
    let is_dense = |i: &usize| contenders[*i].kind == Kind::Dense;
    let dense = (0..contenders.len()).filter(is_dense).min_by(|a, b| median(&times[*a]).total_cmp(&median(&times[*b])));
    let dense_times = times[dense.expect("a dense contender")].clone();
    println!("### {} × {}, batch {}\n", size.d_output, size.d_input, size.batch);
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "product",
        "÷ dense",
        "bits per weight",
        "weight bytes ÷ dense",
        "÷ memory",
    ]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let mut points = Vec::new();
    for (Contender { name, weight_bytes, kind, .. }, times) in contenders.iter().zip(&times) {
        let (ratio, time) = (speedup(&dense_times, times), median(times));
        if ratio * args.slowest < 1.0 {
            continue;
        }
        table.add_row([
            name.clone(),
            format!("{ratio:.2}"),
            format!("{:.2}", 8.0 * *weight_bytes as f64 / size.num_weights() as f64),
            format!("{:.3}", *weight_bytes as f64 / (4 * size.num_weights()) as f64),
            format!("{:.2}", *weight_bytes as f64 / time / bandwidth),
        ]);
        points.push(Point {
            name: name.clone(),
            intensity: size.flops() / *weight_bytes as f64,
            rate: size.flops() / time,
            is_ours: matches!(kind, Kind::Kernel | Kind::Layer),
        });
    }
    println!("{table}\n");
    points
}

/// Prints what rounding activations, or tables, changes in a product.
fn rounding([d_output, d_input]: [usize; 2]) -> Result<()> {
    let x = pixel_bench::gaussian(1, d_input, 1);
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["product", "instructions", "relative squared error against f32"]);
    for codec in ["additive:2", "lapped:2", "trellis:2", "trellis:4"] {
        let form = form(Size { d_output, d_input, batch: 1 }, codec);
        let product = |simd, arithmetic| {
            let mut y = vec![0.0; d_output];
            form.as_slices().with_simd(simd).with_arithmetic(arithmetic).linear(x.as_slice(), &mut y);
            y
        };
        let exact = product(Simd::detect(), Arithmetic::F32);
        let power: f64 = exact.iter().map(|y| f64::from(*y).powi(2)).sum();
        for simd in Simd::available() {
            let rounded = product(simd, Arithmetic::Integer);
            let error: f64 = rounded.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            table.add_row([codec.to_owned(), format!("{:?}", simd.level()), format!("{:.1e}", error / power)]);
        }
    }
    println!("### Integers, {d_output} × {d_input}, Gaussian activations\n\n{table}\n");
    Ok(())
}

/// Prints what two threads gain over one.
fn scaling(shapes: &[[usize; 2]], rounds: usize) -> Result<()> {
    let pools = [1, 2].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build());
    let [one, two] = pools;
    let (one, two) = (one?, two?);
    let bandwidth = [&one, &two].map(|pool| pool.install(stream::read_bandwidth));
    println!("### Threads\n\nTwo threads read memory {:.2} times as fast as one.\n", bandwidth[1] / bandwidth[0]);
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header(["product", "shape", "batch", "two threads ÷ one"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    // Below that products stay on one thread.
    for &[d_output, d_input] in shapes.iter().filter(|[rows, columns]| rows * columns >= 1 << 24) {
        for codec in ["additive:2", "lapped:2", "trellis:2", "trellis:4", "uniform:8"] {
            for batch in [1, 8] {
                let size = Size { d_output, d_input, batch };
                let [mut a, mut b] = [(); 2].map(|()| kernel(size, codec, SimdLevel::Avx512Vbmi, Arithmetic::Integer));
                let (mut run_one, mut run_two) = (|| one.install(|| a.run()), || two.install(|| b.run()));
                let times = in_turns(&mut [&mut run_one, &mut run_two], rounds);
                let gain = format!("{:.2}", speedup(&times[0], &times[1]));
                table.add_row([codec.to_owned(), format!("{d_output} × {d_input}"), batch.to_string(), gain]);
            }
        }
    }
    println!("{table}");
    Ok(())
}
