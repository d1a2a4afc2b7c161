//! What a device made of PIXEL: what is measured on it, and how that is shown.

use crate::cases::{Case, ShapeName};
use crate::models::{Sizes, Text, Weights};
use crate::timing::{copy_bandwidth, seconds, wait};
use anyhow::{Result, ensure};
use burn::tensor::{DType, Device, Distribution, Int, Tensor, TensorData};
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use pixel_core::{CodecSpec, Shape};
use pixel_nn::PatternWeight;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::time::Instant;

/// What is known of a device through some backends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The device, as its driver or whoever asked for the report names it.
    pub device: String,
    /// What was found through each backend.
    pub backends: Vec<BackendReport>,
}

/// What was found through one backend.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BackendReport {
    /// The backend.
    pub backend: String,
    /// The property suite, if it was run.
    pub properties: Option<Properties>,
    /// Bytes a second that a copy reads and writes.
    pub bandwidth: Option<f64>,
    /// Products, dense ones among them.
    pub products: Vec<ProductTime>,
    /// Texts that were continued.
    pub decodes: Vec<DecodeTime>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// What the property suite found.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Properties {
    /// Tests that passed.
    pub passed: usize,
    /// The names of those that did not.
    pub failed: Vec<String>,
    /// Whether it came to its end in its time.
    pub is_complete: bool,
}

/// The time of a product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProductTime {
    /// The codec with its rate; none for a dense weight in F16.
    pub codec: Option<String>,
    /// The weight's shape, outputs first.
    pub shape: [usize; 2],
    /// Rows of activations.
    pub rows: usize,
    /// Bytes of the weight, read once.
    pub bytes: usize,
    /// Seconds.
    pub seconds: f64,
    /// The largest distance of some products from their sums in F64, over the norms of their factors; none for a dense
    /// weight.
    pub error: Option<f64>,
}

/// The time of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecodeTime {
    /// The model.
    pub model: String,
    /// Its layers.
    pub layers: usize,
    /// The codec of its linear layers; none for F16.
    pub codec: Option<String>,
    /// Bytes of the linear layers and the head, which a token reads once.
    pub bytes: usize,
    /// Seconds for a token, the host's reading of it included.
    pub seconds: f64,
}

/// Bytes of weights that follow one another, so that none is found in a cache of the device.
const BEYOND_CACHES: usize = 192 << 20;

/// Bytes of a copy whose bandwidth is measured.
const COPIED: usize = 1 << 30;

/// Tokens of a prompt, and tokens that are timed.
const TOKENS: [usize; 2] = [32, 32];

/// What sums of `x · Wᵀ` may be off by, over the norms of their factors: what sums in F32 may.
const TOLERANCE: f64 = 1e-5;

impl BackendReport {
    /// Measures what a copy takes.
    ///
    /// # Errors
    /// What the device says.
    pub fn measure_copy(&mut self, device: &Device, is_quick: bool) -> Result<()> {
        self.bandwidth = Some(copy_bandwidth(if is_quick { COPIED >> 6 } else { COPIED }, device)?);
        Ok(())
    }

    /// Times a product, and compares some of its sums.
    ///
    /// # Errors
    /// What the device says; if a sum is wrong.
    pub fn measure_product(&mut self, case: &Case, device: &Device, is_quick: bool) -> Result<()> {
        let Case { shape, batch, .. } = *case;
        let bytes = case.weight_bytes()?;
        let weight = PatternWeight::random(shape, &case.codec, None, 1.0, device)?;
        let packed = weight.to_packed()?;
        let mut weights = vec![weight.tensors()];
        for _ in 1..copies(bytes, is_quick) {
            weights.push(PatternWeight::from_packed(&packed, device)?.tensors());
        }
        let x = random([batch, shape.d_input()], DType::F32, device);
        let taken = seconds(device, |call| weights[call % weights.len()].linear(x.clone()))?;
        // A few rows of the weight, through the kernel that synthesises rows.
        let picked: Vec<usize> = (0..16).map(|i| i * (shape.d_output() - 1) / 15).collect();
        let rows = TensorData::new(picked.iter().map(|row| *row as i32).collect(), [picked.len()]);
        let rows = host(weights[0].rows(Tensor::<1, Int>::from_data(rows, device)))?;
        let (y, x) = (host(weights[0].linear(x.clone()))?, host(x)?);
        let error = largest_error(&y, &x, &rows, &picked, shape);
        self.products.push(ProductTime {
            codec: Some(case.codec.to_string()),
            shape: [shape.d_output(), shape.d_input()],
            rows: batch,
            bytes,
            seconds: taken,
            error: Some(error),
        });
        ensure!(error < TOLERANCE, "sums are off by {error:.1e} of the norms of their factors");
        Ok(())
    }

    /// Times a product with a dense weight in F16.
    ///
    /// # Errors
    /// What the device says.
    pub fn measure_dense(&mut self, shape: Shape, rows: usize, device: &Device, is_quick: bool) -> Result<()> {
        let bytes = 2 * shape.num_weights();
        let weight = || random([shape.d_input(), shape.d_output()], DType::F16, device);
        let weights: Vec<_> = (0..copies(bytes, is_quick)).map(|_| weight()).collect();
        let x = random([rows, shape.d_input()], DType::F16, device);
        let seconds = seconds(device, |call| x.clone().matmul(weights[call % weights.len()].clone()))?;
        let shape = [shape.d_output(), shape.d_input()];
        self.products.push(ProductTime { codec: None, shape, rows, bytes, seconds, error: None });
        Ok(())
    }

    /// Times the tokens of a model of `layers` layers.
    ///
    /// # Errors
    /// What the device says.
    pub fn measure_decode(
        &mut self,
        sizes: &Sizes,
        layers: usize,
        codec: Option<&CodecSpec>,
        device: &Device,
        is_quick: bool,
    ) -> Result<()> {
        let weights = codec.map_or(Weights::Dense, |codec| Weights::Coded(codec.clone()));
        let model = sizes.build(layers, &weights, device)?;
        let [prompt, timed] = if is_quick { [4, 2] } else { TOKENS };
        let mut text = Text::new(&model, prompt, timed + 2, device);
        // Kernels for one token are compiled at the first.
        (0..2).try_for_each(|_| text.step().map(drop))?;
        wait(device)?;
        let start = Instant::now();
        (0..timed).try_for_each(|_| text.step().map(drop))?;
        let seconds = start.elapsed().as_secs_f64() / timed as f64;
        let embedding = &model.embed_tokens;
        let head = if model.lm_head.is_none() { embedding.stored_bytes() } else { 0 };
        self.decodes.push(DecodeTime {
            model: sizes.name.to_owned(),
            layers,
            codec: codec.map(ToString::to_string),
            bytes: model.linear_size().stored_bytes + head,
            seconds,
        });
        Ok(())
    }
}

/// How many weights of `bytes` bytes follow one another.
fn copies(bytes: usize, is_quick: bool) -> usize {
    if is_quick { 1 } else { BEYOND_CACHES.div_ceil(bytes).clamp(1, 128) }
}

fn random(shape: [usize; 2], dtype: DType, device: &Device) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), (device, dtype))
}

fn host(tensor: Tensor<2>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|error| anyhow::anyhow!("a tensor cannot be read: {error}"))
}

/// The largest distance of `y`, `[batch, d_output]`, from the products of `x` with the `rows` of the weight that are
/// `picked`, over the norms of both; infinite where something is no number.
fn largest_error(y: &[f32], x: &[f32], rows: &[f32], picked: &[usize], shape: Shape) -> f64 {
    let (m, n) = (shape.d_output(), shape.d_input());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let mut largest = 0f64;
    for (x, y) in x.chunks_exact(n).zip(y.chunks_exact(m)) {
        for (row, at) in rows.chunks_exact(n).zip(picked) {
            let norms = (dot(x, x) * dot(row, row)).sqrt();
            let error = (f64::from(y[*at]) - dot(x, row)).abs() / norms;
            largest = if error.is_finite() { largest.max(error) } else { f64::INFINITY };
        }
    }
    largest
}

impl Properties {
    /// From what a test program printed.
    pub fn parse(printed: &str) -> Self {
        let mut properties = Self::default();
        for line in printed.lines() {
            if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
                properties.failed.push(name.to_owned());
            }
            if let Some(totals) = line.strip_prefix("test result: ") {
                let passed = totals.split(' ').zip(totals.split(' ').skip(1)).find(|(_, word)| *word == "passed;");
                properties.passed += passed.and_then(|(count, _)| count.parse::<usize>().ok()).unwrap_or_default();
                properties.is_complete = true;
            }
        }
        properties
    }
}

impl Report {
    /// Whether something failed.
    pub fn has_failures(&self) -> bool {
        self.backends.iter().any(|backend| {
            let properties = backend.properties.as_ref();
            !backend.failures.is_empty()
                || properties.is_some_and(|found| !found.is_complete || !found.failed.is_empty())
        })
    }

    /// The report as Markdown. Times are shown as shares of what a copy and a dense product take on the same device.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n", self.device);
        for backend in &self.backends {
            let _ = write!(text, "\n## {}\n\n{}", backend.backend, backend.markdown());
        }
        text
    }
}

impl BackendReport {
    fn markdown(&self) -> String {
        let mut text = String::new();
        if let Some(Properties { passed, failed, is_complete }) = &self.properties {
            let end = if *is_complete { "" } else { "; it did not come to its end" };
            let _ = writeln!(text, "Property suite: {passed} passed, {} failed{end}.\n", failed.len());
            failed.iter().for_each(|name| _ = writeln!(text, "- failed: `{name}`"));
        }
        if let Some(bandwidth) = self.bandwidth {
            let _ = writeln!(text, "A copy moves {:.0} GB/s.\n", bandwidth / 1e9);
        }
        if !self.products.is_empty() {
            let mut table = Table::new();
            table.load_style(ASCII_MARKDOWN).set_header([
                "weight",
                "rows",
                "codec",
                "µs",
                "of the copy's bandwidth",
                "times as fast as F16",
                "error",
            ]);
            self.products.iter().for_each(|product| _ = table.add_row(self.product_row(product)));
            let _ = writeln!(text, "{table}\n");
        }
        if !self.decodes.is_empty() {
            let mut table = Table::new();
            table.load_style(ASCII_MARKDOWN).set_header([
                "model",
                "layers",
                "codec",
                "tokens/s",
                "of the copy's bandwidth",
                "times as fast as F16",
            ]);
            self.decodes.iter().for_each(|decode| _ = table.add_row(self.decode_row(decode)));
            let _ = writeln!(text, "{table}\n");
        }
        // What led to a failure follows its first line, in the report's JSON.
        let first = |failure: &String| failure.lines().next().unwrap_or_default().to_owned();
        self.failures.iter().for_each(|failure| _ = writeln!(text, "- not measured: {}", first(failure)));
        text
    }

    /// The share of a copy's bandwidth with which `bytes` are read in `seconds`.
    fn of_bandwidth(&self, bytes: usize, seconds: f64) -> String {
        self.bandwidth.map_or("–".to_owned(), |bandwidth| format!("{:.2}", bytes as f64 / seconds / bandwidth))
    }

    fn product_row(&self, product: &ProductTime) -> [String; 7] {
        let ProductTime { codec, shape, rows, bytes, seconds, error } = product;
        let dense = self.products.iter().find(|other| {
            other.codec.is_none() && other.shape == product.shape && other.rows == product.rows && codec.is_some()
        });
        [
            Shape::new(shape[0], shape[1]).map_or_else(|_| "–".to_owned(), |shape| ShapeName(shape).to_string()),
            rows.to_string(),
            codec.clone().unwrap_or_else(|| "F16".to_owned()),
            format!("{:.1}", seconds * 1e6),
            self.of_bandwidth(*bytes, *seconds),
            dense.map_or("–".to_owned(), |dense| format!("{:.2}", dense.seconds / seconds)),
            error.map_or("–".to_owned(), |error| format!("{error:.1e}")),
        ]
    }

    fn decode_row(&self, decode: &DecodeTime) -> [String; 6] {
        let DecodeTime { model, layers, codec, bytes, seconds } = decode;
        let dense = self
            .decodes
            .iter()
            .find(|other| other.codec.is_none() && (&other.model, other.layers) == (model, *layers) && codec.is_some());
        [
            model.clone(),
            layers.to_string(),
            codec.clone().unwrap_or_else(|| "F16".to_owned()),
            format!("{:.1}", 1.0 / seconds),
            self.of_bandwidth(*bytes, *seconds),
            dense.map_or("–".to_owned(), |dense| format!("{:.2}", dense.seconds / seconds)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_programs_words_are_understood() {
        let printed = "test a::b ... ok\nCUDA: on it\ntest a::c ... FAILED\n\n\
                       test result: FAILED. 20 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out\n";
        let expected = Properties { passed: 20, failed: vec!["a::c".to_owned()], is_complete: true };
        assert_eq!(Properties::parse(printed), expected);
        assert!(!Properties::parse("test a::b ... ok\n").is_complete);
    }

    #[test]
    fn errors_are_relative_and_nan_is_one() {
        let shape = Shape::new(2, 2).unwrap();
        let (x, rows) = ([3.0, 4.0], [1.0, 0.0, 0.0, 2.0]);
        assert_eq!(largest_error(&[3.0, 8.0], &x, &rows, &[0, 1], shape), 0.0);
        assert_eq!(largest_error(&[3.0, 9.0], &x, &rows, &[0, 1], shape), 0.1);
        assert_eq!(largest_error(&[f32::NAN, 8.0], &x, &rows, &[0, 1], shape), f64::INFINITY);
    }

    #[test]
    fn shares_are_of_the_copy_and_of_the_dense_product() {
        let product = |codec: Option<&str>, bytes, seconds| ProductTime {
            codec: codec.map(str::to_owned),
            shape: [64, 32],
            rows: 1,
            bytes,
            seconds,
            error: None,
        };
        let products = vec![product(None, 4096, 4e-6), product(Some("lapped:2"), 600, 1e-6)];
        let backend =
            BackendReport { backend: "cuda".to_owned(), bandwidth: Some(2e9), products, ..BackendReport::default() };
        let report = Report { device: "D".to_owned(), backends: vec![backend] };
        let text = report.markdown();
        let row = text.lines().find(|line| line.contains("lapped:2")).unwrap();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(cells, ["", "64x32", "1", "lapped:2", "1.0", "0.30", "4.00", "–", ""]);
        assert!(!report.has_failures());
    }
}
