//! Synthesis and products straight from the arrays of a [`KernelForm`](super::KernelForm), on the current thread pool.

use super::kernels::{self, Arithmetic, Decoder, Product, Rows};
use crate::codec::CodecLayout;
use crate::math::simd::Simd;
use crate::matrix::Shape;
use rayon::prelude::*;

/// The arrays of a kernel form, borrowed.
///
/// Everything here is in the rotated basis: [`linear`](Self::linear) takes rotated activations, [`rows`](Self::rows)
/// gives weights that the inverse rotation brings back. So protected columns, which are not rotated, come on top:
/// inputs at zero there before the rotation, and a product of their own.
#[derive(Debug, Clone, Copy)]
pub struct PatternSlices<'a> {
    product: Product<'a>,
}

impl<'a> PatternSlices<'a> {
    /// Borrows `codes` `[layout.num_words()]`, `scales` `[d_output, layout.scales_per_row()]` and `dictionary`
    /// `[layout.dictionary_len()]`.
    ///
    /// # Panics
    /// If one has another length.
    pub fn new(layout: CodecLayout, codes: &'a [u32], scales: &'a [f32], dictionary: &'a [f32]) -> Self {
        assert_eq!(codes.len(), layout.num_words(), "words of the codes");
        assert_eq!(scales.len(), layout.shape().d_output() * layout.scales_per_row(), "scales");
        assert_eq!(dictionary.len(), layout.dictionary_len(), "values of the dictionary");
        let (arithmetic, simd) = (Arithmetic::default(), Simd::detect());
        Self { product: Product { layout, codes, scales, dictionary, arithmetic, simd } }
    }

    /// The same weight, to be multiplied in `arithmetic`.
    pub const fn with_arithmetic(mut self, arithmetic: Arithmetic) -> Self {
        self.product.arithmetic = arithmetic;
        self
    }

    /// The same weight, to be read with the instructions of `simd` and no others.
    pub const fn with_simd(mut self, simd: Simd) -> Self {
        self.product.simd = simd;
        self
    }

    /// The weight `[d_output, d_input]`, band by band.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn synthesize(&self, out: &mut [f32]) {
        let shape = self.layout().shape();
        assert_eq!(out.len(), shape.num_weights(), "weights");
        let band_len = self.layout().band_height() * shape.d_input();
        let decoder = Decoder::new(&self.product);
        out.par_chunks_mut(band_len).enumerate().for_each(|(band, rows)| decoder.run(band, 0..shape.d_input(), rows));
    }

    /// Rows `indices` of the weight, `[indices, d_input]`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn rows(&self, indices: &[usize], out: &mut [f32]) {
        let (shape, height) = (self.layout().shape(), self.layout().band_height());
        assert_eq!(out.len(), indices.len() * shape.d_input(), "weights of the rows");
        let decoder = Decoder::new(&self.product);
        let start = || vec![0.0; height * shape.d_input()];
        out.par_chunks_mut(shape.d_input()).zip(indices).for_each_init(start, |band, (out, &row)| {
            assert!(row < shape.d_output(), "row {row} of a weight of {} rows", shape.d_output());
            let first = row / height * height;
            let rows = &mut band[..height.min(shape.d_output() - first) * shape.d_input()];
            decoder.run(row / height, 0..shape.d_input(), rows);
            out.copy_from_slice(&rows[(row - first) * shape.d_input()..][..shape.d_input()]);
        });
    }

    /// `y = x · Wᵀ`: `x` is `[batch, d_input]`, `y` is `[batch, d_output]`.
    ///
    /// # Accuracy
    /// That of the [`Arithmetic`].
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn linear(&self, x: &[f32], y: &mut [f32]) {
        linear(&[*self], Rows { x, prepare: None }, y);
    }

    /// The shape of the weight.
    pub const fn shape(&self) -> Shape {
        self.product.layout.shape()
    }

    fn layout(&self) -> &CodecLayout {
        &self.product.layout
    }
}

/// `y = x · [W₀; W₁; …]ᵀ`: `x` is `[batch, d_input]`, prepared, `y` is `[batch, Σ d_output]`.
///
/// # Panics
/// If there is no weight or more than [`MAX_WEIGHTS`](kernels::MAX_WEIGHTS), or if a length does not fit.
pub(crate) fn linear(weights: &[PatternSlices<'_>], rows: Rows<'_>, y: &mut [f32]) {
    let x = rows.x;
    let mut products = [weights[0].product; kernels::MAX_WEIGHTS];
    let products = &mut products[..weights.len()];
    products.iter_mut().zip(weights).for_each(|(product, weight)| *product = weight.product);
    let n = weights[0].shape().d_input();
    assert!(weights.iter().all(|weight| weight.shape().d_input() == n), "weights of one input");
    let (batch, m) = (x.len() / n, weights.iter().map(|weight| weight.shape().d_output()).sum::<usize>());
    assert_eq!((x.len(), y.len()), (batch * n, batch * m), "activations [{batch}, {n}] and outputs [{batch}, {m}]");
    if batch > 0 {
        kernels::linear(products, rows, y);
    }
}
