//! From packed form back to a dense weight.
//!
//! [`mod@reference`] holds the definition, entry by entry; here is what runs: band by band, every band decoded by its codec,
//! scaled, and rotated back row by row.

mod kernel_form;
mod kernels;
pub mod reference;
mod slices;
mod synthesizer;

pub use kernel_form::{KernelForm, KernelFormError};
pub use kernels::Arithmetic;
pub use slices::PatternSlices;
pub use synthesizer::{PatternRef, SynthesizedFit, WeightSynthesizer, WeightSynthesizerConfig};

use crate::condition::exp2;
use crate::low_rank::DecodedLowRank;
use crate::matrix::Matrix;
use crate::packed::PackedWeight;
use crate::rotation::{Rotation, RotationScratch};
use rayon::prelude::*;

impl PackedWeight {
    /// The dense weight, `[d_output, d_input]`, on the current thread pool.
    pub fn synthesize(&self) -> Matrix {
        let mut dense = Matrix::zeros(self.shape());
        let synthesis = Synthesis::new(self);
        let band_len = synthesis.band_len();
        dense
            .as_mut_slice()
            .par_chunks_mut(band_len)
            .enumerate()
            .for_each_init(|| synthesis.scratch(), |scratch, (band, rows)| synthesis.band(band, rows, scratch));
        dense
    }
}

/// The synthesis of one weight, band by band, for callers that do not want all of it at once.
#[derive(Debug)]
pub struct Synthesis<'a> {
    packed: &'a PackedWeight,
    rotation: Option<Rotation>,
    low_rank: Option<DecodedLowRank>,
}

impl<'a> Synthesis<'a> {
    /// Prepares to synthesise `packed`.
    pub fn new(packed: &'a PackedWeight) -> Self {
        let header = packed.header();
        let rotation = header.rotation.map(|seed| Rotation::new(header.shape.d_input(), seed));
        Self { packed, rotation, low_rank: packed.low_rank().map(DecodedLowRank::new) }
    }

    /// Rows in a band; the last one may have fewer.
    pub fn band_height(&self) -> usize {
        self.packed.codec().band_height(self.packed.shape())
    }

    /// Weights in a band.
    fn band_len(&self) -> usize {
        self.band_height() * self.packed.shape().d_input()
    }

    /// Working memory for [`band`](Self::band).
    pub fn scratch(&self) -> RotationScratch {
        self.rotation.as_ref().map(Rotation::scratch).unwrap_or_default()
    }

    /// Synthesises band `band` into `rows`, `[rows of the band, d_input]`.
    ///
    /// # Panics
    /// If there is no such band or `rows` has another length.
    pub fn band(&self, band: usize, rows: &mut [f32], scratch: &mut RotationScratch) {
        let shape = self.packed.shape();
        let first = band * self.band_height();
        let count = self.band_height().min(shape.d_output() - first);
        assert_eq!(rows.len(), count * shape.d_input(), "rows of the band");
        self.packed.codec().decode_band(shape, self.packed.codes(), band, rows);
        let unit = exp2(self.packed.header().exponent);
        for (i, row) in rows.chunks_exact_mut(shape.d_input()).enumerate() {
            if let Some(scale) = self.packed.row_scales().get(first + i) {
                row.iter_mut().for_each(|w| *w *= scale.to_f32());
            }
            if let Some(low_rank) = &self.low_rank {
                low_rank.add(first + i, row);
            }
            if let Some(rotation) = &self.rotation {
                rotation.inverse(row, scratch);
            }
            // A reproduction of weights at the end of f32's range may lie beyond it.
            row.iter_mut().for_each(|w| *w = (*w * unit).clamp(-f32::MAX, f32::MAX));
            self.packed.protected().replace(first + i, row, unit);
        }
    }
}
