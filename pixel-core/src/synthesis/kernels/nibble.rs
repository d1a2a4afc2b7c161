//! Products with a weight that is a sum of patterns, by tables: `x·ŵ` is a sum over the nibbles of the products of
//! their patterns with the inputs that these reach, of which there are sixteen for each. They are computed once for all
//! rows, and a row adds up those that its codes name.
//!
//! Source: Jégou, Douze and Schmid, *Product Quantization for Nearest Neighbor Search* (2011), for distances by tables;
//! André, Kermarrec and Le Scouarnec, *Quicker ADC* (2019), for tables in registers.

#[cfg(target_arch = "x86_64")]
use super::Arithmetic;
use super::nibble_tables::{Columns, fill_tables};
#[cfg(target_arch = "x86_64")]
use super::nibble_x86::{Avx512, RoundedTables};
use super::scratch::Scratch;
use super::{Product, for_each_band};
use crate::codec::nibble::{FIELD_BYTES, NibbleLayout, PATTERNS, QUAD, STRIP};

/// Fields whose tables are used for all rows of a band before the next: 32 KB of them stay in the nearest cache.
const CHUNK: usize = 512;

/// Strips of a band, at most.
pub(super) const BAND: usize = 8;

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 80;

/// Rows of activations that have tables at the same time.
const MAX_BATCH: usize = 8;

/// `x·Wᵀ`, `[d_output, batch]`, for `x` `[batch, d_input]`.
pub(super) fn linear(product: &Product<'_>, layout: &NibbleLayout, x: &[f32], out: &mut [f32]) {
    let (n, fields) = (layout.shape.d_input(), layout.quads() * QUAD);
    let batch = x.len() / n;
    let columns = Columns::new(layout, product.dictionary);
    let mut padded = Scratch::<f32>::new(columns.padded_len());
    padded[n..].fill(0.0);
    let mut tables = Scratch::<f32>::new(batch.min(MAX_BATCH) * fields * PATTERNS);
    for (block, x) in x.chunks(MAX_BATCH * n).enumerate() {
        let rows = x.chunks_exact(n);
        let width = rows.len();
        for (x, tables) in rows.zip(tables.chunks_exact_mut(fields * PATTERNS)) {
            padded[..n].copy_from_slice(x);
            fill_tables(product.simd, &columns, &padded, tables);
        }
        let lookup = Lookup::new(product, &tables[..width * fields * PATTERNS], fields);
        let parallel = product.is_parallel(width, RATE);
        let band_strips = band_strips(layout, parallel);
        for_each_band(out, band_strips * STRIP * batch, parallel, |band, out| {
            let first = band * band_strips;
            let strips = Strips {
                codes: &product.codes[first * layout.strip_words()..],
                strip_words: layout.strip_words(),
                count: out.len().div_ceil(batch * STRIP),
            };
            let scales = &product.scales[first * STRIP..];
            for b in 0..width {
                let mut sums = [[0.0; STRIP]; BAND];
                lookup.sum(b, strips, &mut sums);
                let sums = sums.as_flattened().iter().zip(scales);
                for (row, (sum, scale)) in out.chunks_exact_mut(batch).zip(sums) {
                    row[block * MAX_BATCH + b] = sum * scale;
                }
            }
        });
    }
}

/// Strips of a band: enough of them for the tables to be worth loading, and enough bands for all threads.
fn band_strips(layout: &NibbleLayout, parallel: bool) -> usize {
    let threads = if parallel { rayon::current_num_threads() } else { 1 };
    layout.strips().div_ceil(4 * threads).clamp(1, BAND)
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

/// How values are looked up, and the tables of up to [`MAX_BATCH`] rows for it.
struct Lookup<'a> {
    /// In registers of values rounded to 16 bits, where that pays.
    #[cfg(target_arch = "x86_64")]
    rounded: Option<RoundedTables>,
    /// In registers of sixteen values; in memory without.
    #[cfg(target_arch = "x86_64")]
    avx512: Option<Avx512>,
    /// `[rows, fields, 16]`.
    tables: &'a [f32],
    fields: usize,
}

impl<'a> Lookup<'a> {
    #[cfg(target_arch = "x86_64")]
    fn new(product: &Product<'_>, tables: &'a [f32], fields: usize) -> Self {
        let pays = product.arithmetic == Arithmetic::Integer
            && RoundedTables::pay(product.simd, product.layout.shape().d_output());
        let rounded = pays.then(|| RoundedTables::new(tables, fields, product.simd)).flatten();
        Self { rounded, avx512: Avx512::new(product.simd), tables, fields }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn new(_: &Product<'_>, tables: &'a [f32], fields: usize) -> Self {
        Self { tables, fields }
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
