//! Products with a weight that is a sum of patterns, by tables: `x·ŵ` is a sum over the nibbles of the products of
//! their patterns with the inputs that these reach, of which there are sixteen for each. They are computed once for all
//! rows, and a row adds up those that its codes name.
//!
//! Source: Jégou, Douze and Schmid, *Product Quantization for Nearest Neighbor Search* (2011), for distances by tables;
//! André, Kermarrec and Le Scouarnec, *Quicker ADC* (2019), for tables in registers.

use super::Arithmetic;
use super::Product;
use super::nibble_tables::{Columns, fill_tables};
#[cfg(target_arch = "x86_64")]
use super::nibble_x86::{Avx512, RoundedTables};
use super::scratch::Scratch;
use crate::codec::CodecLayout;
use crate::codec::nibble::{FIELD_BYTES, NibbleLayout, PATTERNS, QUAD, STRIP};
use crate::math::simd::SimdLevel;

/// Fields whose tables are used for all rows of a band before the next: 32 KB of them stay in the nearest cache.
const CHUNK: usize = 512;

/// Strips of a band, at most.
pub(super) const BAND: usize = 8;

/// Multiply-adds a nanosecond, roughly.
pub(super) const RATE: usize = 80;

/// The batch from which tables in memory are slower than decoded weights.
const FEW: usize = 8;

/// Whether tables are faster than weights that are decoded and multiplied in f32. Where they are not in registers, they
/// are for few rows only; where they are, but in f32, a lookup takes 6 ps a nibble of eight weights, a product of
/// decoded weights 20, and to decode 1200.
pub(super) fn pays(product: &Product<'_>, layout: &NibbleLayout, batch: usize) -> bool {
    let rounds = product.arithmetic == Arithmetic::Integer;
    match product.simd.level() {
        _ if batch < FEW => true,
        SimdLevel::Portable => false,
        SimdLevel::Avx2 => rounds,
        SimdLevel::Avx512 | SimdLevel::Avx512Vbmi => rounds || batch * (6 * layout.per_eight).saturating_sub(20) < 1200,
    }
}

/// The tables of up to [`MAX_BATCH`](super::MAX_BATCH) rows of activations, and how values are looked up in them.
pub(super) struct Tables {
    /// In registers of values rounded to 16 bits, where that pays.
    #[cfg(target_arch = "x86_64")]
    rounded: Option<RoundedTables>,
    /// In registers of sixteen values; in memory without.
    #[cfg(target_arch = "x86_64")]
    avx512: Option<Avx512>,
    /// `[rows, fields, 16]`.
    tables: Scratch<f32>,
    fields: usize,
}

impl Tables {
    /// The tables for `x` `[rows, d_input]`, to be read by `d_output` rows of weights.
    pub(super) fn new(product: &Product<'_>, layout: &NibbleLayout, d_output: usize, x: &[f32]) -> Self {
        let (n, fields) = (layout.shape.d_input(), layout.quads() * QUAD);
        let columns = Columns::new(layout, product.dictionary);
        let mut padded = Scratch::<f32>::new(columns.padded_len());
        padded[n..].fill(0.0);
        let mut tables = Scratch::<f32>::new(x.len() / n * fields * PATTERNS);
        for (x, tables) in x.chunks_exact(n).zip(tables.chunks_exact_mut(fields * PATTERNS)) {
            padded[..n].copy_from_slice(x);
            fill_tables(product.simd, &columns, &padded, tables);
        }
        #[cfg(target_arch = "x86_64")]
        {
            let pays = product.arithmetic == Arithmetic::Integer && RoundedTables::pay(product.simd, d_output);
            let rounded = pays.then(|| RoundedTables::new(&tables, fields, product.simd)).flatten();
            Self { rounded, avx512: Avx512::new(product.simd), tables, fields }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            let _ = d_output;
            Self { tables, fields }
        }
    }

    /// Whether the tables that `made` has are those of `product`.
    pub(super) fn serve(product: &Product<'_>, made: &Product<'_>) -> bool {
        let reads = |product: &Product<'_>| match product.layout {
            CodecLayout::Nibble(layout) => Some((layout.per_eight, layout.windows, layout.shape.d_input())),
            _ => None,
        };
        reads(product) == reads(made) && product.dictionary == made.dictionary
    }

    /// The products of the strips from `first` on with every row of activations, into `out` `[rows of the strips,
    /// batch]`.
    pub(super) fn multiply(&self, product: &Product<'_>, layout: &NibbleLayout, first: usize, out: &mut [f32]) {
        let batch = self.tables.len() / (self.fields * PATTERNS);
        let strips = Strips {
            codes: &product.codes[first * layout.strip_words()..],
            strip_words: layout.strip_words(),
            count: out.len().div_ceil(batch * STRIP),
        };
        let scales = &product.scales[first * STRIP..];
        for b in 0..batch {
            let mut sums = [[0.0; STRIP]; BAND];
            self.sum(b, strips, &mut sums);
            let sums = sums.as_flattened().iter().zip(scales);
            for (row, (sum, scale)) in out.chunks_exact_mut(batch).zip(sums) {
                row[b] = sum * scale;
            }
        }
    }

    /// Adds up what the strips look up for row `b` of the activations, in f32 where its tables cannot be rounded.
    fn sum(&self, b: usize, strips: Strips<'_>, sums: &mut [[f32; STRIP]; BAND]) {
        let sums = &mut sums[..strips.count];
        #[cfg(target_arch = "x86_64")]
        if self.rounded.as_ref().is_some_and(|rounded| rounded.sum(b, strips, sums)) {
            return;
        }
        let tables = &self.tables[b * self.fields * PATTERNS..][..self.fields * PATTERNS];
        for (first, tables) in (0..).step_by(CHUNK).zip(tables.chunks(CHUNK * PATTERNS)) {
            #[cfg(target_arch = "x86_64")]
            if let Some(avx512) = self.avx512 {
                avx512.sum(strips, first, tables, sums);
                continue;
            }
            for (strip, sums) in sums.iter_mut().enumerate() {
                sum_portable(strips.fields(strip, first, tables.len() / PATTERNS), tables, sums);
            }
        }
    }
}

/// The codes of a band.
#[derive(Clone, Copy)]
pub(super) struct Strips<'a> {
    /// From the first strip on.
    pub(super) codes: &'a [u32],
    pub(super) strip_words: usize,
    pub(super) count: usize,
}

impl<'a> Strips<'a> {
    /// The codes of fields `first … first + len` of strip `strip`, `[len, 16]`.
    pub(super) fn fields(self, strip: usize, first: usize, len: usize) -> &'a [u8] {
        let words = &self.codes[strip * self.strip_words..][..self.strip_words];
        &bytemuck::cast_slice(words)[first * FIELD_BYTES..][..len * FIELD_BYTES]
    }
}

/// Adds the values that the codes of a strip look up, field by field.
fn sum_portable(codes: &[u8], tables: &[f32], sums: &mut [f32; STRIP]) {
    let (lower, upper) = sums.split_at_mut(FIELD_BYTES);
    for (codes, table) in codes.as_chunks::<FIELD_BYTES>().0.iter().zip(tables.as_chunks::<PATTERNS>().0) {
        for ((code, lower), upper) in codes.iter().zip(&mut *lower).zip(&mut *upper) {
            *lower += table[usize::from(code & 15)];
            *upper += table[usize::from(code >> 4)];
        }
    }
}
