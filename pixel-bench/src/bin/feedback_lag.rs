//! What deciding late costs the lapped code's error feedback, by the width of a weight.
//!
//! ```sh
//! cargo run --release -p pixel-bench --bin feedback_lag
//! ```
//!
//! Gaussian weights, and inputs whose powers fall as `i^−decay` along the axes of a random basis. With feedback that
//! knew every path's own residuals the loss would be `tr(D)/n` times the plain error, `H = L·D·Lᵀ`; the table shows by
//! what factor the loss with feedback is above that, and, to compare, the loss without feedback.

use clap::Parser;
use pixel_bench::gaussian;
use pixel_core::math::rotation::Rotation;
use pixel_core::{CodecSpec, CodingSpec, Encoder, FeedbackOptions, Matrix, Moments, Shape};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Added to the diagonal, in units of its mean: the inputs' moments are known.
const DAMPING: f64 = 0.01;

#[derive(Debug, Parser)]
struct Args {
    /// The codec.
    #[arg(long, default_value = "lapped:2")]
    codec: CodecSpec,
    /// Inputs of the weights; 4096 take minutes.
    #[arg(long, value_delimiter = ',', default_value = "32,384,576,1536")]
    widths: Vec<usize>,
    /// Outputs of the weights.
    #[arg(long, default_value_t = 64)]
    rows: usize,
    /// How the powers of the inputs fall.
    #[arg(long, value_delimiter = ',', default_value = "0.5,1")]
    decays: Vec<f64>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    println!("{}, {} rows", args.codec, args.rows);
    println!("width  decay  tr(D)/tr(H)  loss ÷ that of exact feedback  ÷ without feedback");
    for &width in &args.widths {
        for &decay in &args.decays {
            let moments = moments(width, decay)?;
            let weight = gaussian(args.rows, width, 1);
            let plain = CodingSpec::new(args.codec.clone()).with_rotation(None).with_feedback(None);
            let fed =
                plain.clone().with_feedback(Some(FeedbackOptions { damping: Some(DAMPING), ..Default::default() }));
            let encode = |spec: &CodingSpec| -> anyhow::Result<_> {
                let (_, outcome) = Encoder::new(spec).with_moments(moments.clone()).encode(weight.clone())?;
                let output = outcome.output.expect("moments were given");
                Ok((outcome.weight.relative_mse(), output.sums.error))
            };
            let ((error, without), (_, with)) = (encode(&plain)?, encode(&fed)?);
            let (kept, trace) = conditional(&moments);
            let power: f64 = weight.as_slice().iter().map(|w| f64::from(*w).powi(2)).sum();
            let exact = error * power / width as f64 * kept;
            println!("{width:5}  {decay:5}  {:11.3}  {:29.3}  {:18.3}", kept / trace, with / exact, with / without);
        }
    }
    Ok(())
}

/// Powers that fall, in random order, along the axes of a random basis.
fn moments(width: usize, decay: f64) -> anyhow::Result<Moments> {
    let mut powers: Vec<f64> = (1..=width).map(|i| (i as f64).powf(-decay)).collect();
    powers.shuffle(&mut ChaCha8Rng::seed_from_u64(2));
    let mut samples = Matrix::zeros(Shape::new(width, width)?);
    for (i, power) in powers.iter().enumerate() {
        samples.as_mut_slice()[i * width + i] = (width as f64 * power).sqrt() as f32;
    }
    Rotation::new(width, 3).rotate(&mut samples);
    Ok(Moments::of_inputs(width, samples.as_slice()))
}

/// `tr(D)` of the damped moments, columns taken from the last, and their trace.
fn conditional(moments: &Moments) -> (f64, f64) {
    let n = moments.d_input();
    let trace: f64 = (0..n).map(|i| moments.at(i, i)).sum();
    let mut factor = vec![0.0; n * n];
    let mut kept = 0.0;
    for i in 0..n {
        for j in 0..=i {
            let (place, other) = (n - 1 - i, n - 1 - j);
            let damping = if i == j { DAMPING * trace / n as f64 } else { 0.0 };
            let (row, column) = (&factor[i * n..][..j], &factor[j * n..][..j]);
            let sum = moments.at(place, other) + damping - row.iter().zip(column).map(|(a, b)| a * b).sum::<f64>();
            factor[i * n + j] = if i == j { sum.sqrt() } else { sum / factor[j * n + j] };
        }
        kept += factor[i * n + i].powi(2) - DAMPING * trace / n as f64;
    }
    (kept, trace)
}
