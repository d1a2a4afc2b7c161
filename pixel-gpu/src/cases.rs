//! The products that are looked at: every codec and rate, at shapes that matter, for one row and for many.

use anyhow::{Context, Result, ensure};
use burn::tensor::{DType, Device, Tensor};
use pixel_core::backend::PatternTensors;
use pixel_core::codec::{CodecLayout, FAMILIES};
use pixel_core::synthesis::Arithmetic;
use pixel_core::{CodecSpec, Shape};
use std::fmt;
use std::str::FromStr;

/// A product of `batch` rows with a weight `[d_output, d_input]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The codec of the weight, with its rate.
    pub codec: CodecSpec,
    /// The weight's shape.
    pub shape: Shape,
    /// Rows of activations.
    pub batch: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.codec, ShapeName(self.shape), self.batch)
    }
}

impl FromStr for Case {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(' ').collect();
        let [codec, shape, batch] = parts[..] else { anyhow::bail!("\"{text}\" is not CODEC SHAPE BATCH") };
        Ok(Self {
            codec: codec.parse().with_context(|| format!("codec \"{codec}\""))?,
            shape: shape.parse::<ShapeName>()?.0,
            batch: batch.parse().with_context(|| format!("batch \"{batch}\""))?,
        })
    }
}

/// A shape as `4096x11008`, outputs first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShapeName(pub Shape);

impl fmt::Display for ShapeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.0.d_output(), self.0.d_input())
    }
}

impl FromStr for ShapeName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let sides = text.split_once('x').and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)));
        let (rows, columns) = sides.with_context(|| format!("shape \"{text}\" is not OUTPUTSxINPUTS"))?;
        Ok(Self(Shape::new(rows, columns).with_context(|| format!("shape \"{text}\""))?))
    }
}

impl Case {
    /// How the weight is read.
    ///
    /// # Errors
    /// If there is no such codec, or kernels do not read it.
    pub fn layout(&self) -> Result<CodecLayout> {
        let codec = self.codec.build().with_context(|| format!("codec \"{}\"", self.codec))?;
        codec.layout(self.shape).with_context(|| format!("codec \"{}\" has no kernels", self.codec))
    }

    /// Bytes of codes and scales of the weight, which a product reads once.
    ///
    /// # Errors
    /// As [`layout`](Self::layout).
    pub fn weight_bytes(&self) -> Result<usize> {
        let layout = self.layout()?;
        Ok(4 * (layout.num_words() + layout.scales_per_row() * self.shape.d_output()))
    }

    /// Weight and activations on `device`, of zeros: what kernels do does not depend on them.
    ///
    /// # Errors
    /// As [`layout`](Self::layout).
    pub fn prepare(&self, device: &Device) -> Result<Product> {
        let layout = self.layout()?;
        let zeros = |len: usize| Tensor::<1>::zeros([len], (device, DType::F32));
        let (d_output, scales) = (self.shape.d_output(), layout.scales_per_row());
        let weight = PatternTensors {
            layout,
            codes: Tensor::zeros([layout.num_words()], (device, DType::U32)),
            scales: zeros(d_output * scales).reshape([d_output, scales]),
            dictionary: zeros(layout.dictionary_len()),
            rotation: None,
            protected: None,
            low_rank: None,
            arithmetic: Arithmetic::default(),
            tables: layout.tables(),
        };
        Ok(Product { weight, x: zeros(self.batch * self.shape.d_input()).reshape([self.batch, self.shape.d_input()]) })
    }
}

/// A product whose factors are on a device.
#[derive(Debug, Clone)]
pub struct Product {
    weight: PatternTensors,
    x: Tensor<2>,
}

impl Product {
    /// `x · Wᵀ`.
    pub fn run(&self) -> Tensor<2> {
        self.weight.linear(self.x.clone())
    }
}

/// Every codec and rate, by default options.
pub fn all_codecs() -> Vec<CodecSpec> {
    let specs =
        FAMILIES.iter().flat_map(|family| family.rates().iter().map(|bits| CodecSpec::new(family.name(), *bits)));
    specs.collect()
}

/// All combinations.
///
/// # Errors
/// If there are none.
pub fn all(codecs: &[CodecSpec], shapes: &[ShapeName], batches: &[usize]) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for codec in codecs {
        for &ShapeName(shape) in shapes {
            cases.extend(batches.iter().map(|&batch| Case { codec: codec.clone(), shape, batch }));
        }
    }
    ensure!(!cases.is_empty(), "no codec, shape or batch is left");
    Ok(cases)
}
