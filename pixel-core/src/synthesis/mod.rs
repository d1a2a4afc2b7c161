//! From packed form back to a dense weight, and products with it.
//!
//! ```text
//!  PackedWeight ──▶ Arranged ──▶ Decoder ──▶ rows in units of their scales ──▶ scaled, rotated back
//!                   └──▶ KernelForm ──▶ PatternSlices::linear: products straight from the codes
//! ```
//!
//! [`mod@reference`] holds the definition, entry by entry. There is one decoder for a codec, that of its
//! [`CodecLayout`](crate::codec::CodecLayout): files and layers decode through it.

mod arranged;
mod kernel_form;
mod kernels;
pub mod reference;
mod slices;

pub use kernel_form::{KernelForm, KernelFormError};
pub use kernels::Arithmetic;
pub(crate) use kernels::{MAX_WEIGHTS, Rows};
pub use slices::PatternSlices;
pub(crate) use slices::linear;

use crate::encode::DecodedLowRank;
use crate::math::rotation::{Rotation, RotationScratch};
use crate::math::simd::Simd;
use crate::matrix::Matrix;
use crate::packed::PackedWeight;
use arranged::Arranged;
use kernels::{Decoder, Product};
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
    codes: Option<Codes<'a>>,
    rotation: Option<Rotation>,
    low_rank: Option<DecodedLowRank>,
}

/// The codes of a weight whose codec has a layout.
#[derive(Debug)]
struct Codes<'a> {
    arranged: Arranged<'a>,
    /// The scales, widened.
    scales: Vec<f32>,
    tables: crate::codec::LayoutTables,
}

impl<'a> Synthesis<'a> {
    /// Prepares to synthesise `packed`.
    pub fn new(packed: &'a PackedWeight) -> Self {
        let header = packed.header();
        let rotation = header.rotation.map(|seed| Rotation::new(header.shape.d_input(), seed));
        let codes = Arranged::new(packed).map(|arranged| {
            let scales = arranged.scales.iter().map(|scale| scale.to_f32()).collect();
            Codes { tables: arranged.layout.tables(), scales, arranged }
        });
        Self { packed, codes, rotation, low_rank: packed.low_rank().map(DecodedLowRank::new) }
    }

    /// Rows in a band; the last one may have fewer.
    pub fn band_height(&self) -> usize {
        self.codes.as_ref().map_or(1, |codes| codes.arranged.layout.band_height())
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
        match &self.codes {
            Some(codes) => codes.decoder().run(band, 0..shape.d_input(), rows),
            None => self.decode_by_definition(first, rows),
        }
        let unit = self.packed.header().exponent.unit();
        for (i, row) in rows.chunks_exact_mut(shape.d_input()).enumerate() {
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

    /// Row `row`, weight by weight.
    fn decode_by_definition(&self, row: usize, values: &mut [f32]) {
        let (shape, codec, codes) = (self.packed.shape(), self.packed.codec(), self.packed.codes());
        let scale = self.packed.row_scales().get(row).map_or(1.0, |scale| scale.to_f32());
        for (col, value) in values.iter_mut().enumerate() {
            *value = codec.decode_weight(shape, codes, row, col) * scale;
        }
    }
}

impl Codes<'_> {
    fn decoder(&self) -> Decoder<'_> {
        let Arranged { layout, words, dictionary, .. } = &self.arranged;
        let (arithmetic, simd) = (Arithmetic::default(), Simd::detect());
        let product = Product { layout: *layout, codes: words, scales: &self.scales, dictionary, arithmetic, simd };
        Decoder::with_tables(&product, &self.tables)
    }
}
