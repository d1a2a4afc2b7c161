//! The solvers of singular value decompositions side by side: time and residual as ratios to faer's in one run.
//!
//! `OPENBLAS_NUM_THREADS=1 cargo run --release -p pixel-bench --features lapack --bin solvers`: faer runs on one
//! thread.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use pixel_bench::matrices::gaussian;
use pixel_core::{Matrix, Shape};
use pixel_experimental::svd::{FaerSvd, SvdSolver};
use std::time::Instant;

/// Times the solvers of singular value decompositions
#[derive(Debug, Parser)]
struct Args {
    /// Shapes, rows×columns
    #[arg(long, value_delimiter = ',', default_values_t = ["1024x1024", "4096x1024"].map(str::to_owned))]
    shapes: Vec<String>,
    /// The rank
    #[arg(long, default_value_t = 64)]
    rank: usize,
    /// Turns that each solver takes; the median is printed
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(args.rounds > 0, "--rounds must be at least 1");
    let solvers = pixel_bench::solvers();
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN);
    table.set_header([
        "shape",
        "spectrum",
        "solver",
        "time ÷ faer",
        "residual ÷ best",
        "largest difference of a value",
    ]);
    for shape in &args.shapes {
        let (rows, columns) = shape.split_once('x').with_context(|| format!("--shapes {shape}: not ROWSxCOLUMNS"))?;
        let shape = Shape::new(rows.parse()?, columns.parse()?)?;
        for (spectrum, decay) in [("flat", 0.0), ("columns fall as 1/√j", 0.5)] {
            let matrix = falling(shape, decay);
            rows_of(&args, &solvers, &matrix, spectrum, &mut table)?;
        }
    }
    table.column_iter_mut().skip(3).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    Ok(())
}

fn rows_of(
    args: &Args,
    solvers: &[Box<dyn SvdSolver>],
    matrix: &Matrix,
    spectrum: &str,
    table: &mut Table,
) -> Result<()> {
    let mut times = vec![Vec::new(); solvers.len()];
    let mut found = Vec::new();
    for round in 0..args.rounds {
        for (solver, times) in solvers.iter().zip(&mut times) {
            let start = Instant::now();
            let svd = solver.svd(matrix.as_ref(), args.rank)?;
            times.push(start.elapsed().as_secs_f64());
            if round == 0 {
                found.push(svd);
            }
        }
    }
    let median = |times: &[f64]| {
        let mut times = times.to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let best = FaerSvd.svd(matrix.as_ref(), args.rank)?;
    let residual = |svd: &pixel_experimental::svd::Svd| {
        let mut left = matrix.clone();
        svd.clone().into_low_rank().add_scaled(&mut left, -1.0);
        left.as_slice().iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt()
    };
    for ((solver, times_of), svd) in solvers.iter().zip(&times).zip(&found) {
        let values = svd.singular_values.iter().zip(&best.singular_values);
        let difference = values.map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
        table.add_row([
            matrix.shape().to_string(),
            spectrum.to_owned(),
            solver.name().to_owned(),
            format!("{:.3}", median(times_of) / median(&times[0])),
            format!("{:.4}", residual(svd) / residual(&best)),
            format!("{difference:.1e}"),
        ]);
    }
    Ok(())
}

/// Gaussian, column `j` times `(1 + j)^(−decay)`.
fn falling(shape: Shape, decay: f32) -> Matrix {
    let mut matrix = gaussian(shape.d_output(), shape.d_input(), 1);
    for row in matrix.as_mut_slice().chunks_exact_mut(shape.d_input()) {
        row.iter_mut().enumerate().for_each(|(j, w)| *w *= (1.0 + j as f32).powf(-decay));
    }
    matrix
}
