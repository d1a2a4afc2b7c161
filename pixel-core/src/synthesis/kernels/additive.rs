//! Products with an additively coded weight, by tables: `x·ŵ` for a group of eight inputs is a sum over the
//! sub-dictionaries of `x·P_m[c_m]`, of which there are sixteen. They are computed once for all rows, and a row adds up
//! those that its codes name.
//!
//! Source: Jégou, Douze and Schmid, *Product Quantization for Nearest Neighbor Search* (2011), for distances by tables;
//! André, Kermarrec and Le Scouarnec, *Quicker ADC* (2019), for tables in registers.

#[cfg(target_arch = "x86_64")]
use super::Arithmetic;
#[cfg(target_arch = "x86_64")]
use super::additive_x86::{Avx512, RoundedTables};
use super::scratch::Scratch;
use super::{Product, for_each_band};
use crate::codec::additive::{AdditiveLayout, FIELD_BYTES, GROUP, PATTERNS, QUAD, STRIP};
use crate::math::simd::for_every_level;

/// Fields whose tables are used for all rows of a band before the next: 32 KB of them stay in the nearest cache.
const CHUNK: usize = 512;

/// Strips of a band, at most.
pub(super) const BAND: usize = 8;

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 80;

/// Rows of activations that have tables at the same time.
const MAX_BATCH: usize = 8;

/// `x·Wᵀ`, `[d_output, batch]`, for `x` `[batch, d_input]`.
pub(super) fn linear(product: &Product<'_>, layout: &AdditiveLayout, x: &[f32], out: &mut [f32]) {
    let (n, fields) = (layout.shape.d_input(), layout.quads() * QUAD);
    let batch = x.len() / n;
    let columns = columns(product.dictionary);
    let mut tables = Scratch::<f32>::new(batch.min(MAX_BATCH) * fields * PATTERNS);
    for (block, x) in x.chunks(MAX_BATCH * n).enumerate() {
        let rows = x.chunks_exact(n);
        let width = rows.len();
        for (x, tables) in rows.zip(tables.chunks_exact_mut(fields * PATTERNS)) {
            fill_tables(product.simd, x, &columns, layout.sub_dictionaries, tables);
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
fn band_strips(layout: &AdditiveLayout, parallel: bool) -> usize {
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

/// Weight `j` of every pattern of every sub-dictionary, `[M, 8, 16]`.
fn columns(dictionary: &[f32]) -> Scratch<f32> {
    let mut columns = Scratch::new(dictionary.len());
    for (patterns, columns) in dictionary.chunks_exact(PATTERNS * GROUP).zip(columns.chunks_exact_mut(PATTERNS * GROUP))
    {
        for (i, column) in columns.iter_mut().enumerate() {
            *column = patterns[i % PATTERNS * GROUP + i / PATTERNS];
        }
    }
    columns
}

for_every_level! {
    /// `x·P_m[c]` for every group, sub-dictionary `m` and code `c`, `[groups, M, 16]`, and zeros behind them.
    fn fill_tables(x: &[f32], columns: &[f32], sub_dictionaries: usize, tables: &mut [f32]) -> () {
        let per_group = sub_dictionaries * PATTERNS;
        let groups = x.len().div_ceil(GROUP);
        let (tables, padding) = tables.split_at_mut(groups * per_group);
        padding.fill(0.0);
        for (x, tables) in x.chunks(GROUP).zip(tables.chunks_exact_mut(per_group)) {
            let mut group = [0.0; GROUP];
            group[..x.len()].copy_from_slice(x);
            let (tables, _) = tables.as_chunks_mut::<PATTERNS>();
            for (table, columns) in tables.iter_mut().zip(columns.chunks_exact(PATTERNS * GROUP)) {
                let mut sums = [0.0; PATTERNS];
                for (x, column) in group.iter().zip(columns.as_chunks::<PATTERNS>().0) {
                    for (sum, value) in sums.iter_mut().zip(column) {
                        *sum += x * value;
                    }
                }
                *table = sums;
            }
        }
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
