//! Products of one input with several weights in one step: what kernels read of the activations is made once for all
//! weights that read the same, and the bands of all of them are one heap of tasks.

use super::scratch::Scratch;
use super::{MAX_BATCH, Product, nibble, transpose};
#[cfg(target_arch = "x86_64")]
use super::{decoded, trellis};
use crate::codec::CodecLayout;
use crate::codec::nibble::STRIP;
use crate::pool;
use std::sync::{Mutex, PoisonError};

/// The weights of a product, at most: query, key and value.
pub(crate) const MAX_WEIGHTS: usize = 3;

/// What the kernels of a weight read of up to [`MAX_BATCH`] rows of activations.
enum Input {
    Nibble(nibble::Tables),
    #[cfg(target_arch = "x86_64")]
    Trellis(trellis::Input),
}

impl Input {
    /// The input as `product` reads it, made for the `d_output` rows of all weights that read the same.
    fn new(product: &Product<'_>, d_output: usize, x: &[f32]) -> Self {
        match &product.layout {
            CodecLayout::Nibble(layout) => Self::Nibble(nibble::Tables::new(product, layout, d_output, x)),
            #[cfg(target_arch = "x86_64")]
            CodecLayout::Trellis(layout) => Self::Trellis(trellis::Input::new(product, layout, x)),
            _ => unreachable!("a weight whose kernels are not of this kind"),
        }
    }

    /// Whether the input made for `made` serves `product` as well.
    fn serves(product: &Product<'_>, made: &Product<'_>) -> bool {
        if (product.simd, product.arithmetic) != (made.simd, made.arithmetic) {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        if matches!(product.layout, CodecLayout::Trellis(_)) {
            return trellis::Input::serve(product, made);
        }
        matches!(product.layout, CodecLayout::Nibble(_)) && nibble::Tables::serve(product, made)
    }

    /// The rows of a task: a band of the kernel, or of several for the tables to be worth loading, and enough tasks for
    /// all threads.
    fn band_rows(&self, d_output: usize, tasks: usize) -> usize {
        match self {
            Self::Nibble(_) => STRIP * d_output.div_ceil(STRIP * tasks).clamp(1, nibble::BAND),
            #[cfg(target_arch = "x86_64")]
            Self::Trellis(_) => trellis::ROWS,
        }
    }

    /// Rows of `product` from `first` on, the first of a band, into `out` `[rows, batch]`.
    fn multiply(&self, product: &Product<'_>, first: usize, out: &mut [f32]) {
        match (self, &product.layout) {
            (Self::Nibble(tables), CodecLayout::Nibble(layout)) => {
                tables.multiply(product, layout, first / STRIP, out);
            }
            #[cfg(target_arch = "x86_64")]
            (Self::Trellis(input), CodecLayout::Trellis(layout)) => {
                input.multiply(product, layout, first / trellis::ROWS, out);
            }
            _ => unreachable!("the input of another kernel"),
        }
    }

    /// What [`multiply`](Self::multiply) cannot do: rows of activations that cannot be rounded.
    fn complete(&self, product: &Product<'_>, x: &[f32], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let Self::Trellis(input) = self {
            decoded::linear_of(product, input.unrounded(), x, out);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (product, x, out);
    }
}

/// What is done to a row that was copied.
pub(crate) type Prepare<'a> = &'a (dyn Fn(&mut [f32]) + Sync);

/// Rows that are multiplied, and what is done to each before.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    /// `[batch, d_input]`.
    pub(crate) x: &'a [f32],
    /// What is done to each row.
    pub(crate) prepare: Option<Prepare<'a>>,
}

impl Rows<'_> {
    /// Calls `run` with the rows as they are multiplied, `n` values each.
    fn with_prepared<R>(self, n: usize, run: impl FnOnce(&[f32]) -> R) -> R {
        let Some(prepare) = self.prepare else { return run(self.x) };
        let mut rows = Scratch::new(self.x.len());
        pool::for_each_chunk(&mut rows, n, self.x.len() >= PREPARED_FROM, |i, row| {
            row.copy_from_slice(&self.x[i * n..][..n]);
            prepare(row);
        });
        run(&rows)
    }
}

/// Values from which rows are prepared by several threads.
const PREPARED_FROM: usize = 1 << 14;

/// `y = x·[W₀; W₁; …]ᵀ`: `x` `[batch, d_input]`, prepared, `y` `[batch, Σ d_output]`.
///
/// # Panics
/// If there is no weight, or more than [`MAX_WEIGHTS`].
pub(in crate::synthesis) fn linear(products: &[Product<'_>], rows: Rows<'_>, y: &mut [f32]) {
    assert!((1..=MAX_WEIGHTS).contains(&products.len()), "{} weights of one input", products.len());
    let (m, n) = (total(products), products[0].layout.shape().d_input());
    let batch = rows.x.len() / n;
    if !products.iter().all(|product| product.has_bands(batch)) {
        return rows.with_prepared(n, |x| one_by_one(products, x, y));
    }
    if batch == 1 {
        return in_bands(products, rows, y);
    }
    rows.with_prepared(n, |x| {
        for (x, y) in x.chunks(MAX_BATCH * n).zip(y.chunks_mut(MAX_BATCH * m)) {
            let (batch, mut columns) = (x.len() / n, Scratch::new(y.len()));
            in_bands(products, Rows { x, prepare: None }, &mut columns);
            transpose(&columns, batch, y, m);
        }
    });
}

/// All outputs, `Σ d_output`.
fn total(products: &[Product<'_>]) -> usize {
    products.iter().map(|product| product.layout.shape().d_output()).sum()
}

/// [`linear`] weight by weight.
fn one_by_one(products: &[Product<'_>], x: &[f32], y: &mut [f32]) {
    let (m, n) = (total(products), products[0].layout.shape().d_input());
    if let [product] = products {
        return product.run(x, y);
    }
    let mut first = 0;
    for product in products {
        let width = product.layout.shape().d_output();
        let mut own = Scratch::new(x.len() / n * width);
        product.run(x, &mut own);
        for (y, own) in y.chunks_exact_mut(m).zip(own.chunks_exact(width)) {
            y[first..first + width].copy_from_slice(own);
        }
        first += width;
    }
}

/// `[Σ d_output, batch]` for up to [`MAX_BATCH`] rows.
fn in_bands(products: &[Product<'_>], rows: Rows<'_>, out: &mut [f32]) {
    let work = total(products) * rows.x.len();
    if work >= super::PARALLEL_FROM * rate(&products[0]) && pool::threads() > 1 {
        let codes = products.iter().map(|product| product.codes);
        pool::reading(codes, || in_bands_on(pool::threads(), products, rows, out));
    } else {
        in_bands_on(1, products, rows, out);
    }
}

/// [`in_bands`] on so many threads.
fn in_bands_on(threads: usize, products: &[Product<'_>], rows: Rows<'_>, out: &mut [f32]) {
    let (m, n) = (total(products), products[0].layout.shape().d_input());
    let batch = rows.x.len() / n;
    let mut prepared = Scratch::new(if rows.prepare.is_some() { rows.x.len() } else { 0 });
    let x = match rows.prepare {
        None => rows.x,
        Some(prepare) => {
            prepared.copy_from_slice(rows.x);
            prepared.chunks_exact_mut(n).for_each(prepare);
            &prepared
        }
    };
    let inputs = Inputs::new(products, x);
    let input = |i: usize| inputs.of(i);
    let bands = split(products, &mut *out, batch).enumerate().flat_map(|(i, part)| {
        let rows = input(i).band_rows(m, 4 * threads);
        part.chunks_mut(rows * batch).enumerate().map(move |(band, out)| (i, band * rows, out))
    });
    let multiply = |(i, first, out): (usize, usize, &mut [f32])| input(i).multiply(&products[i], first, out);
    if threads == 1 {
        bands.for_each(multiply);
    } else {
        let bands = Mutex::new(bands);
        pool::for_each(threads, |_| {
            loop {
                let next = bands.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(band) = next else { break };
                multiply(band);
            }
        });
    }
    for (i, (product, out)) in products.iter().zip(split(products, out, batch)).enumerate() {
        input(i).complete(product, x, out);
    }
}

/// What the kernels of several weights read.
struct Inputs {
    inputs: [Option<Input>; MAX_WEIGHTS],
    /// Which of the weights made the input that each one reads.
    maker: [usize; MAX_WEIGHTS],
}

impl Inputs {
    fn new(products: &[Product<'_>], x: &[f32]) -> Self {
        let mut maker = [0; MAX_WEIGHTS];
        for (i, product) in products.iter().enumerate() {
            maker[i] = (0..i).find(|&made| maker[made] == made && Input::serves(product, &products[made])).unwrap_or(i);
        }
        let mut inputs = [const { None }; MAX_WEIGHTS];
        for (i, product) in products.iter().enumerate().filter(|(i, _)| maker[*i] == *i) {
            let readers = products.iter().zip(maker).filter(|(_, maker)| *maker == i);
            let d_output = readers.map(|(product, _)| product.layout.shape().d_output()).sum();
            inputs[i] = Some(Input::new(product, d_output, x));
        }
        Self { inputs, maker }
    }

    /// The input of weight `i`.
    fn of(&self, i: usize) -> &Input {
        self.inputs[self.maker[i]].as_ref().expect("made for every weight")
    }
}

/// Multiply-adds a nanosecond, roughly.
fn rate(product: &Product<'_>) -> usize {
    match &product.layout {
        #[cfg(target_arch = "x86_64")]
        CodecLayout::Trellis(_) => trellis::RATE,
        _ => nibble::RATE,
    }
}

/// The outputs `[d_output, batch]` of each weight.
fn split<'a>(products: &[Product<'_>], mut out: &'a mut [f32], batch: usize) -> impl Iterator<Item = &'a mut [f32]> {
    let lens: [usize; MAX_WEIGHTS] =
        std::array::from_fn(|i| products.get(i).map_or(0, |product| product.layout.shape().d_output() * batch));
    lens.into_iter().take(products.len()).map(move |len| {
        let (part, rest) = std::mem::take(&mut out).split_at_mut(len);
        out = rest;
        part
    })
}
