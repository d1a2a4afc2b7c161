//! Products with an additively coded weight, by tables: `x·ŵ` for a group of eight inputs is a sum over the sub-dictionaries
//! of `x·P_m[c_m]`, of which there are sixteen. They are computed once for all rows, and a row adds up those that its codes
//! name.
//!
//! Source: Jégou, Douze and Schmid, *Product Quantization for Nearest Neighbor Search* (2011), for distances by tables; André,
//! Kermarrec and Le Scouarnec, *Quicker ADC* (2019), for tables in registers.

#[cfg(target_arch = "x86_64")]
use super::Arithmetic;
#[cfg(target_arch = "x86_64")]
use super::additive_x86::{Avx512, RoundedTables};
use super::scratch::Scratch;
use super::{Product, for_each_band};
use crate::codec::additive::{AdditiveLayout, FIELD_BYTES, GROUP, PATTERNS, QUAD, STRIP};
use crate::simd::for_every_level;

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
enum Lookup<'a> {
    /// In memory.
    Portable { tables: &'a [f32], fields: usize },
    /// In a register of sixteen values.
    #[cfg(target_arch = "x86_64")]
    Avx512 { avx512: Avx512, tables: &'a [f32], fields: usize },
    /// In a register of sixteen values rounded to 16 bits.
    #[cfg(target_arch = "x86_64")]
    Rounded(RoundedTables),
}

impl<'a> Lookup<'a> {
    fn new(product: &Product<'_>, tables: &'a [f32], fields: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        if product.arithmetic == Arithmetic::Integer
            && RoundedTables::pay(product.simd, product.layout.shape().d_output())
            && let Some(tables) = RoundedTables::new(tables, fields, product.simd)
        {
            return Self::Rounded(tables);
        } else if let Some(avx512) = Avx512::new(product.simd) {
            return Self::Avx512 { avx512, tables, fields };
        }
        let _ = product;
        Self::Portable { tables, fields }
    }

    /// Adds up what the strips look up for row `b` of the activations.
    fn sum(&self, b: usize, strips: Strips<'_>, sums: &mut [[f32; STRIP]; BAND]) {
        let chunks = |fields: usize| (0..fields).step_by(CHUNK).map(move |first| (first, CHUNK.min(fields - first)));
        match self {
            Self::Portable { tables, fields } => {
                let tables = &tables[b * fields * PATTERNS..];
                for (first, len) in chunks(*fields) {
                    for (strip, sums) in sums[..strips.count].iter_mut().enumerate() {
                        sum_portable(strips.fields(strip, first, len), &tables[first * PATTERNS..], sums);
                    }
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 { avx512, tables, fields } => {
                let tables = &tables[b * fields * PATTERNS..];
                for (first, len) in chunks(*fields) {
                    avx512.sum(strips, first, &tables[first * PATTERNS..][..len * PATTERNS], &mut sums[..strips.count]);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Rounded(tables) => tables.sum(b, strips, &mut sums[..strips.count]),
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
