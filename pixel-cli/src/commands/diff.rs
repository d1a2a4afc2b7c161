//! `pixel diff`.

use crate::output::{self, table};
use anyhow::{Result, bail};
use pixel_core::archive::calibration::Calibration;
use pixel_core::archive::{Model, ModelTensor};
use pixel_core::math::metrics::ErrorSums;
use pixel_core::{MatrixRef, Shape};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

/// Compare two models tensor by tensor, each an archive or a checkpoint
///
/// The error is that of B relative to A. Exit status 0 if all tensors are equal, 1 if any differs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model to compare to
    a: PathBuf,
    /// The model to compare
    b: PathBuf,
    /// What the layers read, from `pixel calibrate`: show the relative error of the layers' outputs as well. Collected
    /// on texts that the compression has not seen, it is the held-out loss
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// List only tensors whose name matches
    #[arg(long, value_name = "REGEX")]
    include: Option<regex::Regex>,
    /// List equal tensors too
    #[arg(long)]
    all: bool,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// How a tensor of one model stands to that of the other.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case", tag = "status")]
enum Status {
    Equal,
    OnlyInA,
    OnlyInB,
    Shapes { a: Vec<usize>, b: Vec<usize> },
    Values { relative_mse: f64 },
    Bytes,
}

#[derive(Debug, Serialize)]
struct Difference {
    #[serde(flatten)]
    status: Status,
    a: Option<String>,
    b: Option<String>,
    a_bytes: Option<u64>,
    b_bytes: Option<u64>,
    /// Relative error of the outputs, where the inputs are known.
    output_loss: Option<f64>,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let (a, b) = (Model::open(&self.a)?, Model::open(&self.b)?);
        [&a, &b].into_iter().for_each(|model| output::remarks(model.checkpoint()));
        let (tensors_a, tensors_b) = (a.tensors(), b.tensors());
        let calibration = self.calibration.as_deref().map(Calibration::open).transpose()?;
        let wanted = |name: &&String| self.include.as_ref().is_none_or(|include| include.is_match(name));
        let names: BTreeSet<&String> = tensors_a.keys().chain(tensors_b.keys()).filter(wanted).collect();
        let mut differences = BTreeMap::new();
        for name in names {
            let (in_a, in_b) = (tensors_a.get(name), tensors_b.get(name));
            let status = compare(&a, &b, name, in_a, in_b)?;
            let output_loss = match (&status, &calibration) {
                (Status::Values { .. }, Some(calibration)) => output_loss(&a, &b, name, calibration)?,
                _ => None,
            };
            let difference = Difference {
                status,
                output_loss,
                a: in_a.map(describe),
                b: in_b.map(describe),
                a_bytes: in_a.map(|tensor| tensor.stored_bytes),
                b_bytes: in_b.map(|tensor| tensor.stored_bytes),
            };
            differences.insert(name.clone(), difference);
        }
        let equal = differences.values().filter(|difference| matches!(difference.status, Status::Equal)).count();
        let num_different = differences.len() - equal;
        if !self.all {
            differences.retain(|_, difference| !matches!(difference.status, Status::Equal));
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&differences)?)
        } else {
            print(&differences, equal)
        }
        Ok(if num_different == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The relative error of the layer's outputs; `None` if its inputs are not known.
fn output_loss(a: &Model, b: &Model, name: &str, calibration: &Calibration) -> Result<Option<f64>> {
    let Some(moments) = calibration.moments(name)? else { return Ok(None) };
    let shape = &a.tensors()[name].shape;
    let shape = Shape::new(shape[0], shape[1])?;
    let (original, reproduced) = (a.to_f32(name)?, b.to_f32(name)?);
    if shape.d_input() != moments.d_input() {
        bail!("{name} is {shape}, {} has inputs of width {}", calibration.path().display(), moments.d_input());
    }
    let sums = moments.output_error(MatrixRef::new(shape, &original)?, MatrixRef::new(shape, &reproduced)?);
    Ok(Some(sums.relative_mse()))
}

fn describe(tensor: &ModelTensor) -> String {
    tensor.codec.clone().unwrap_or_else(|| tensor.dtype.to_string())
}

fn compare(a: &Model, b: &Model, name: &str, in_a: Option<&ModelTensor>, in_b: Option<&ModelTensor>) -> Result<Status> {
    let (in_a, in_b) = match (in_a, in_b) {
        (Some(in_a), Some(in_b)) => (in_a, in_b),
        (Some(_), None) => return Ok(Status::OnlyInA),
        _ => return Ok(Status::OnlyInB),
    };
    if in_a.shape != in_b.shape {
        return Ok(Status::Shapes { a: in_a.shape.clone(), b: in_b.shape.clone() });
    }
    if let (Some(bytes_a), Some(bytes_b)) = (a.bytes(name)?, b.bytes(name)?)
        && in_a.dtype == in_b.dtype
    {
        if bytes_a == bytes_b {
            return Ok(Status::Equal);
        }
        if !in_a.is_float() {
            return Ok(Status::Bytes);
        }
        // Numbers that f32 cannot tell apart differ all the same.
        let relative_mse = ErrorSums::between(&a.to_f32(name)?, &b.to_f32(name)?).relative_mse();
        return Ok(if relative_mse == 0.0 { Status::Bytes } else { Status::Values { relative_mse } });
    }
    if !in_a.is_float() || !in_b.is_float() {
        return Ok(Status::Bytes);
    }
    let relative_mse = ErrorSums::between(&a.to_f32(name)?, &b.to_f32(name)?).relative_mse();
    Ok(if relative_mse == 0.0 { Status::Equal } else { Status::Values { relative_mse } })
}

fn print(differences: &BTreeMap<String, Difference>, equal: usize) {
    let mut table = table(&["tensor", "A", "B", "A bytes", "B bytes", "relative MSE", "output loss"], 3);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    for (name, difference) in differences {
        let status = match &difference.status {
            Status::Equal => "0".into(),
            Status::OnlyInA => "only in A".into(),
            Status::OnlyInB => "only in B".into(),
            Status::Shapes { a, b } => format!("shapes {} and {}", output::shape(a), output::shape(b)),
            Status::Values { relative_mse } => output::error(*relative_mse),
            Status::Bytes => "bytes differ".into(),
        };
        table.add_row([
            name.clone(),
            or_dash(difference.a.clone()),
            or_dash(difference.b.clone()),
            or_dash(difference.a_bytes.map(|bytes| bytes.to_string())),
            or_dash(difference.b_bytes.map(|bytes| bytes.to_string())),
            status,
            or_dash(difference.output_loss.map(output::error)),
        ]);
    }
    if !differences.is_empty() {
        println!("{table}");
    }
    let losses: Vec<f64> = differences.values().filter_map(|difference| difference.output_loss).collect();
    if !losses.is_empty() {
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        println!("mean output loss of {} tensors: {}", losses.len(), output::error(mean));
    }
    println!("{equal} tensors are equal");
}
