//! The modules as a Burn user meets them: conversion, display, records, devices, training, caches, archives.

mod caches;
#[path = "../draws/mod.rs"]
mod draws;
mod linear;
mod parts;
mod records;
#[cfg(feature = "autodiff")]
mod training;

use approx::abs_diff_eq;
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{EmbeddingConfig, Linear};
use burn::store::ModuleRecord;
use burn::tensor::{DType, Device, Int, Tensor};
use draws::{dense, normal};
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::compressor::{RunOptions, compress_checkpoint};
use pixel_core::plan::{Plan, Recipe};
use pixel_core::{
    CodecSpec, CodingSpec, Encoder, FactorStorage, LowRank, LowRankSpec, Matrix, PackedWeight, Shape, compress_weight,
};
use pixel_nn::{
    LayerError, LowRankParams, PIXELAttentionConfig, PIXELEmbedding, PIXELEmbeddingConfig, PIXELLinear,
    PIXELLinearConfig, PixelModule, SharedInput, SynthesisMode, WeightCache,
};

const CODECS: [&str; 5] =
    ["trellis:3:window=8", "additive:3:beam=1", "lapped:2:beam=1", "matching:2:beam=1:learned=3", "uniform:4"];

fn codec(text: &str) -> CodecSpec {
    text.parse().unwrap()
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// The largest difference, over the largest value.
fn distance<const D: usize>(found: Tensor<D>, expected: Tensor<D>) -> f32 {
    let largest = |values: Vec<f32>| values.into_iter().fold(0.0f32, |m, v| m.max(v.abs()));
    largest(host(found - expected.clone())) / largest(host(expected))
}

/// Holds the outputs of `layer` to `expected`: closely in f32, and as closely as activations of 16 bits allow by
/// default.
fn agrees<const D: usize>(layer: &PIXELLinear, x: &Tensor<D>, expected: &Tensor<D>, what: &str) {
    let exact = layer.clone().with_synthesis(SynthesisMode::OnDemandF32);
    for (mode, layer, bound) in [("f32", &exact, 1e-5), ("the default", layer, 1e-4)] {
        let error = distance(layer.forward(x.clone()), expected.clone());
        assert!(error < bound, "{what}, {mode}: {error}");
    }
}

/// A weight `[d_output, d_input]` with four protected columns.
fn protected(text: &str, shape: [usize; 2]) -> PackedWeight {
    let values = host(normal(shape));
    let matrix = Matrix::new(Shape::new(shape[0], shape[1]).unwrap(), values).unwrap();
    let spec = CodingSpec::new(codec(text)).with_rotation(Some(5)).with_protect(4);
    Encoder::new(&spec).encode(matrix).unwrap().0
}

/// A packed weight with a low-rank part that holds half of its energy.
fn with_low_rank(text: &str, [m, n]: [usize; 2]) -> PackedWeight {
    let matrix = |m: usize, n: usize| Matrix::new(Shape::new(m, n).unwrap(), host(normal([m, n]))).unwrap();
    let part = LowRank { up: matrix(m, 2), down: matrix(2, n) };
    let mut weight = part.product();
    let rotation = pixel_core::Rotation::new(n, 5);
    let mut scratch = rotation.scratch();
    weight.as_mut_slice().chunks_exact_mut(n).for_each(|row| rotation.inverse(row, &mut scratch));
    weight.as_mut_slice().iter_mut().zip(host(normal([m, n]))).for_each(|(w, v)| *w += 1.4 * v);
    let low_rank = LowRankSpec { rank: 2, storage: FactorStorage::Int8 };
    let spec = CodingSpec::new(codec(text)).with_rotation(Some(5)).with_low_rank(Some(low_rank));
    Encoder::new(&spec).with_low_rank(&part).encode(weight).unwrap().0
}
