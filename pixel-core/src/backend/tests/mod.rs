//! One suite, instantiated for every backend that is compiled in.
//!
//! Tolerances are `k·ε·√n` times the norms that bound the result: rounding errors of `n` terms add up like a random
//! walk.

#[cfg(feature = "autodiff")]
mod gradients;
mod layers;

use super::*;
use crate::codec::CodecLayout;
use crate::synthesis::{Arithmetic, KernelForm, reference};
use crate::{
    CodecSpec, CodingSpec, Encoder, FactorStorage, LowRank, LowRankSpec, Matrix, PackedWeight, Rotation, Shape,
};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::{RngExt, SeedableRng};
use rand_distr::StandardNormal;
use std::collections::BTreeSet;

/// Every codec and rate, with cheap searches.
const SPECS: [&str; 32] = [
    "trellis:1:window=8",
    "trellis:1.5:window=9",
    "trellis:2:window=8",
    "trellis:2:window=16",
    "trellis:2.5:window=10",
    "trellis:3:window=8",
    "trellis:4:window=11",
    "additive:1:beam=1",
    "additive:1.5:beam=1",
    "additive:2:beam=1",
    "additive:2.5:beam=1",
    "additive:3:beam=1",
    "additive:4:beam=1",
    "lapped:1:beam=1",
    "lapped:1.5:beam=1",
    "lapped:2:beam=1",
    "lapped:2.5:beam=1",
    "lapped:3:beam=1",
    "lapped:4:beam=1",
    "matching:0.5:beam=1",
    "matching:1:beam=1",
    "matching:2:beam=1:patterns=6:learned=5",
    "matching:4:beam=1:patterns=5:scale_bits=3",
    "matching:1:beam=1:tile=0:patterns=6",
    "matching:1.5:beam=1:tile=4",
    "matching:2.5:beam=1:tile=5:patterns=7",
    "uniform:2:group=8",
    "uniform:3:group=24",
    "uniform:4",
    "uniform:5:group=32",
    "uniform:6",
    "uniform:8:group=16",
];

const EPSILON: f64 = f32::EPSILON as f64;

/// The relative rounding error of the factors of Burn's own products in F32: on CUDA their first eleven bits go through
/// the tensor cores (TF32), elsewhere all do.
fn product_epsilon(device: &Device) -> f64 {
    // Of a factor with thirteen bits the last are lost.
    let factor = 1.0 + 2f32.powi(-12);
    let product = |side: usize| {
        let x = tensor2(vec![factor; side * side], [side, side], device);
        host(x.matmul(tensor2(vec![1.0; side * side], [side, side], device)))[0] / side as f32
    };
    // Products of different sizes may go different ways.
    if [16, 64].iter().any(|side| product(*side) != factor) { 2f64.powi(-10) } else { EPSILON }
}

#[derive(Debug, Clone)]
struct Case {
    spec: CodecSpec,
    shape: Shape,
    batch: usize,
    rotation: Option<u64>,
    protect: usize,
    rank: usize,
    strided: bool,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let sides = (1usize..75, 1usize..75, 1usize..=64);
    (0..SPECS.len(), sides, any::<Option<u64>>(), (0usize..10, 0usize..6), any::<bool>(), any::<u64>()).prop_map(
        |(spec, (d_output, d_input, batch), rotation, (protect, rank), strided, seed)| Case {
            spec: SPECS[spec].parse().unwrap(),
            shape: Shape::new(d_output, d_input).unwrap(),
            batch,
            rotation,
            // Every other weight has none.
            protect: protect.saturating_sub(5).min(d_input - 1),
            rank: rank.saturating_sub(2).min(d_input).min(d_output),
            strided,
            seed,
        },
    )
}

impl Case {
    fn new(spec: &str, d_output: usize, d_input: usize) -> Self {
        let shape = Shape::new(d_output, d_input).unwrap();
        let spec = spec.parse().unwrap();
        Self { spec, shape, batch: 3, rotation: Some(1), protect: 0, rank: 0, strided: false, seed: 7 }
    }

    fn packed(&self) -> PackedWeight {
        let mut weight = Matrix::new(self.shape, gaussian(self.shape.num_weights(), self.seed)).unwrap();
        let spec = CodingSpec::new(self.spec.clone()).with_rotation(self.rotation).with_protect(self.protect);
        let part = (self.rank > 0).then(|| self.low_rank());
        if let Some(part) = &part {
            let rotation = self.rotation.map(|seed| Rotation::new(self.shape.d_input(), seed));
            let mut product = part.product();
            for (row, product) in product.as_mut_slice().chunks_exact_mut(self.shape.d_input()).enumerate() {
                if let Some(rotation) = &rotation {
                    rotation.inverse(product, &mut rotation.scratch());
                }
                let weights = &mut weight.as_mut_slice()[row * self.shape.d_input()..];
                weights.iter_mut().zip(product).for_each(|(w, p)| *w += *p);
            }
        }
        let storage = if self.seed.is_multiple_of(2) { FactorStorage::F16 } else { FactorStorage::Int8 };
        let spec = spec.with_low_rank(part.as_ref().map(|_| LowRankSpec { rank: self.rank, storage }));
        let encoder = Encoder::new(&spec);
        let encoder = part.iter().fold(encoder, |encoder, part| encoder.with_low_rank(part));
        encoder.encode(weight).unwrap().0
    }

    /// A low-rank part with about as much energy as the rest of the weight.
    fn low_rank(&self) -> LowRank {
        let matrix = |m, n, seed| Matrix::new(Shape::new(m, n).unwrap(), gaussian(m * n, seed)).unwrap();
        let (m, n) = (self.shape.d_output(), self.shape.d_input());
        LowRank { up: matrix(m, self.rank, self.seed ^ 4), down: matrix(self.rank, n, self.seed ^ 5) }
    }

    /// Activations `[batch, d_input]`, and the same on the device, strided if so asked.
    fn activations(&self, device: &Device) -> (Matrix, Tensor<2>) {
        let (batch, n) = (self.batch, self.shape.d_input());
        let x = Matrix::new(Shape::new(batch, n).unwrap(), gaussian(batch * n, self.seed ^ 1)).unwrap();
        let tensor = tensor2(x.as_slice().to_vec(), [batch, n], device);
        // A transposed copy, seen through another transpose.
        let tensor = if self.strided { tensor.transpose().add_scalar(0.0).transpose() } else { tensor };
        (x, tensor)
    }
}

fn gaussian(len: usize, seed: u64) -> Vec<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.sample::<f32, _>(StandardNormal)).collect()
}

fn tensor2(values: Vec<f32>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values, shape), (device, DType::F32))
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// What the rounding of a weight's terms may add to its error: they may cancel, and none is larger than the norm of the
/// whole weight, the patterns of tiles having norm 1.
fn cancellation(weight: &PatternTensors, dense: &Matrix) -> f64 {
    let terms = match weight.layout {
        CodecLayout::Trellis(_) => 1,
        CodecLayout::Nibble(layout) => layout.depth(),
        CodecLayout::Matching(layout) => layout.terms(),
        CodecLayout::Uniform(_) => 2,
    };
    let terms = terms + 2 * weight.low_rank.as_ref().map_or(0, |part| part.up.dims()[0]);
    4.0 * EPSILON * (terms as f64).sqrt() * norm(dense.as_slice())
}

/// `linear` against the definition of synthesis in slices, and against the product with the backend's own synthesis.
fn linear_is_the_product_with_the_weight(device: &Device, case: &Case) {
    let packed = case.packed();
    let weight = PatternTensors::new(&packed, device).unwrap();
    let (x, tensor) = case.activations(device);
    let (m, n) = (case.shape.d_output(), case.shape.d_input());
    let y = host(weight.clone().with_arithmetic(Arithmetic::F32).linear(tensor.clone()));
    let integer = host(weight.linear(tensor.clone()));
    let composed = host(tensor.matmul(weight.synthesize().transpose()));
    let dense = reference::synthesize(&packed);
    let cancelled = cancellation(&weight, &dense);
    let products = product_epsilon(device);
    // What has a part beside the codes has a product of Burn's.
    let own = if case.rank + case.protect > 0 { products } else { EPSILON };
    for (b, x) in x.as_slice().chunks_exact(n).enumerate() {
        for (r, row) in dense.as_slice().chunks_exact(n).enumerate() {
            let expected = dot(x, row);
            let within = |epsilon: f64| {
                norm(x) * (16.0 * epsilon * (n as f64).sqrt() * norm(row) + cancelled * epsilon / EPSILON) + 1e-30
            };
            let bound = within(own);
            // Activations, or tables of partial products, in 16 bits.
            let rounded = bound + 2.0 * norm(x) * norm(row) * (n as f64).sqrt() / 65534.0;
            // Or factors in the bits that tensor cores take.
            let rounded = rounded.max(within(products));
            let at = b * m + r;
            for (what, found, bound) in [
                ("linear", y[at], bound),
                ("integer", integer[at], rounded),
                ("composed", composed[at], within(products)),
            ] {
                let error = (f64::from(found) - expected).abs();
                assert!(error <= bound, "{what} [{b}, {r}]: {found} for {expected}, {error:e} > {bound:e}");
            }
        }
    }
}

/// Synthesis and single rows against the definition in slices.
fn synthesis_is_the_definition(device: &Device, case: &Case) {
    let packed = case.packed();
    let weight = PatternTensors::new(&packed, device).unwrap();
    let (m, n) = (case.shape.d_output(), case.shape.d_input());
    let dense = reference::synthesize(&packed);
    let cancelled = cancellation(&weight, &dense);
    let lost = if case.rank > 0 { product_epsilon(device) / EPSILON } else { 1.0 };
    let all = host(weight.synthesize());
    // Row numbers out of order, one of them twice.
    let picked: Vec<i32> = [0, m / 2, m - 1, 0].map(|row| row as i32).to_vec();
    let rows = host(weight.rows(Tensor::<1, Int>::from_data(TensorData::new(picked.clone(), [4]), device)));
    let close = |found: &[f32], row: usize| {
        let expected = &dense.as_slice()[row * n..][..n];
        let bound = lost * (16.0 * EPSILON * (n as f64).sqrt() * norm(expected) + cancelled) + 1e-30;
        for (c, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = f64::from((found - expected).abs());
            assert!(error <= bound, "[{row}, {c}]: {found} for {expected}, {error:e} > {bound:e}");
        }
    };
    all.chunks_exact(n).enumerate().for_each(|(row, values)| close(values, row));
    rows.chunks_exact(n).zip(picked).for_each(|(values, row)| close(values, row as usize));
}

/// With whole numbers in scales and dictionary, f32 is exact, and what is left is the integer part of decoding: it must
/// agree to the bit.
fn codes_decode_to_the_same_integers(device: &Device, case: &Case) {
    let packed = case.packed();
    let mut form = KernelForm::new(&packed).unwrap();
    form.scales.fill(1.0);
    match form.layout {
        CodecLayout::Trellis(_) => form.dictionary.fill(1.0),
        CodecLayout::Nibble(_) => form.dictionary.iter_mut().enumerate().for_each(|(i, value)| *value = i as f32),
        CodecLayout::Uniform(_) => {}
        // Gains and ladder 1, stored patterns each another number, computed ones as integers.
        CodecLayout::Matching(layout) => {
            form.dictionary.fill(1.0);
            let stored = layout.stored_start()..layout.norms_start();
            form.dictionary[stored].iter_mut().enumerate().for_each(|(i, value)| *value = (i % 61) as f32);
        }
    }
    let mut expected = vec![0.0; case.shape.num_weights()];
    form.as_slices().synthesize(&mut expected);
    let mut weight = PatternTensors::new(&packed, device).unwrap();
    weight.rotation = None;
    weight.protected = None;
    weight.low_rank = None;
    weight.scales = weight.scales.ones_like();
    let len = form.dictionary.len();
    weight.dictionary = Tensor::from_data(TensorData::new(form.dictionary, [len]), (device, DType::F32));
    assert_same("kernel", &host(weight.synthesize()), &expected);
    let layout = weight.layout;
    let defined = definition::synthesize::<Dispatch>(
        weight.codes.into_dispatch(),
        weight.scales.into_dispatch(),
        weight.dictionary.into_dispatch(),
        &layout,
    );
    assert_same("definition", &host(Tensor::<2>::from_dispatch(defined)), &expected);
}

fn assert_same(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    if let Some(i) = (0..found.len()).find(|&i| found[i] != expected[i]) {
        panic!("{what}: weight {i} is {} for {}", found[i], expected[i]);
    }
}

/// The rotation against the slices, and its definition against both.
fn rotations_agree(device: &Device, rows: usize, n: usize, seed: u64) {
    let tables = RotationTensors::new(n, seed, device);
    let lost = product_epsilon(device) / EPSILON;
    let values = gaussian(rows * n, seed);
    for direction in [Direction::Forward, Direction::Inverse] {
        let x = tensor2(values.clone(), [rows, n], device);
        let found = host(rotate(x.clone(), &tables, direction));
        let defined = host(Tensor::<2>::from_dispatch(tables.defined(x, direction)));
        let mut expected = values.clone();
        let (rotation, mut scratch) = (tables.rotation(), tables.rotation().scratch());
        for (row, x) in expected.chunks_exact_mut(n).enumerate() {
            let bound = 4.0 * EPSILON * (n as f64).log2().max(1.0) * norm(x)
                + EPSILON * (rotation.odd_part() as f64).sqrt() * norm(x);
            match direction {
                Direction::Forward => rotation.forward(x, &mut scratch),
                Direction::Inverse => rotation.inverse(x, &mut scratch),
            }
            for (c, expected) in x.iter().enumerate() {
                let of_kernel = ("kernel", found[row * n + c], bound);
                for (what, found, bound) in [of_kernel, ("definition", defined[row * n + c], lost * bound)] {
                    let error = f64::from((found - expected).abs());
                    assert!(error <= bound, "{what} {direction:?} {n} [{row}, {c}]: {error:e} > {bound:e}");
                }
            }
        }
    }
}

fn similarities_are_cosines(device: &Device, tiles: usize, patterns: usize, len: usize, seed: u64) {
    let (mut a, b) = (gaussian(tiles * len, seed), gaussian(patterns * len, !seed));
    a[..len].fill(0.0);
    // Tiles whose squares leave the range of f32, on either side.
    a.chunks_exact_mut(len).skip(1).step_by(3).for_each(|tile| tile.iter_mut().for_each(|v| *v *= 1e-25));
    a.chunks_exact_mut(len).skip(2).step_by(3).for_each(|tile| tile.iter_mut().for_each(|v| *v *= 1e25));
    let found =
        host(match_patterns(tensor2(a.clone(), [tiles, len], device), tensor2(b.clone(), [patterns, len], device)));
    let epsilon = product_epsilon(device);
    for (t, tile) in a.chunks_exact(len).enumerate() {
        for (p, pattern) in b.chunks_exact(len).enumerate() {
            let expected = if t == 0 { 0.0 } else { dot(tile, pattern) / (norm(tile) * norm(pattern)) };
            let error = (f64::from(found[t * patterns + p]) - expected).abs();
            assert!(error <= 8.0 * epsilon * (len as f64).sqrt(), "[{t}, {p}]: {error:e}");
        }
    }
}

/// Specifications that stand for their codecs where all 32 would take too long.
const FEW: [&str; 5] = [
    "trellis:2:window=8",
    "additive:3:beam=1",
    "lapped:1.5:beam=1",
    "uniform:3:group=8",
    "matching:2:beam=1:learned=5:patterns=6",
];

fn every_codec_and_rate_agrees(device: &Device) {
    for spec in SPECS {
        let case = Case::new(spec, 37, 43);
        linear_is_the_product_with_the_weight(device, &case);
        codes_decode_to_the_same_integers(device, &case);
    }
}

fn half_precision_activations_are_summed_in_f32(device: &Device) {
    if !device.supports_dtype(DType::F16) {
        return;
    }
    for (protect, rank) in [(0, 0), (5, 0), (0, 3), (2, 3)] {
        half_precision(device, &Case { protect, rank, ..Case::new("trellis:2:window=8", 33, 70) });
    }
}

fn half_precision(device: &Device, case: &Case) {
    let weight = PatternTensors::new(&case.packed(), device).unwrap();
    let x = tensor2(gaussian(140, 3), [2, 70], device).cast(DType::F16);
    let y = weight.linear(x.clone());
    assert_eq!(y.dtype(), DType::F16);
    // The rotated activations are rounded to F16 once more than in f32.
    let (y, exact) = (host(y.cast(DType::F32)), host(weight.linear(x.cast(DType::F32))));
    let error = y.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    assert!(error < 2e-3 * norm(&exact), "{case:?}: {y:?} for {exact:?}");
}

fn a_weight_reads_back_as_it_was(device: &Device) {
    for (i, spec) in SPECS.into_iter().enumerate() {
        let packed = Case { protect: i % 3, rank: i % 4, seed: i as u64, ..Case::new(spec, 21, 234) }.packed();
        let again = PatternTensors::new(&packed, device).unwrap().to_packed(packed.header()).unwrap();
        assert!(packed.streams().eq(again.streams()), "{spec}");
    }
}

/// Protected columns are what is stored to the bit, and inputs there see nothing of the codes.
fn protected_columns_replace_the_codes(device: &Device) {
    let tolerance = 1e-5f32.max(8.0 * product_epsilon(device) as f32);
    for spec in FEW {
        let case = Case { protect: 4, ..Case::new(spec, 19, 22) };
        let packed = case.packed();
        let (columns, values) = (packed.protected().columns(), packed.protected().values());
        let unit = packed.header().exponent.unit();
        let weight = PatternTensors::new(&packed, device).unwrap();
        let rows = Tensor::<1, Int>::from_data(TensorData::new((0..19).collect::<Vec<i32>>(), [19]), device);
        for (what, dense) in [("synthesize", host(weight.synthesize())), ("rows", host(weight.rows(rows)))] {
            for (i, value) in values.iter().enumerate() {
                let found = dense[i / 4 * 22 + columns[i % 4] as usize];
                assert_eq!(found, value.to_f32() * unit, "{spec} {what}: value {i}");
            }
        }
        // Inputs at these columns alone, in a tensor of three axes: the product is theirs.
        let mut x = vec![0.0; 2 * 22];
        columns.iter().enumerate().for_each(|(i, &c)| (x[c as usize], x[22 + c as usize]) = (1.0, i as f32));
        let x = Tensor::<3>::from_data(TensorData::new(x, [2, 1, 22]), (device, DType::F32));
        let y = weight.linear(x);
        assert_eq!(y.dims(), [2, 1, 19], "{spec}");
        for (r, y) in host(y).into_iter().enumerate() {
            let of_row = values[r % 19 * 4..][..4].iter().enumerate();
            let expected: f32 = of_row.map(|(i, v)| v.to_f32() * unit * if r < 19 { 1.0 } else { i as f32 }).sum();
            let is_close = approx::abs_diff_eq!(y, expected, epsilon = tolerance);
            assert!(is_close, "{spec}: output {r} is {y} for {expected}");
        }
        assert_eq!(weight.linear(Tensor::<2>::zeros([0, 22], device)).dims(), [0, 19], "{spec}");
    }
}

fn activations_of_another_width_are_refused(device: &Device) {
    let weight = PatternTensors::new(&Case::new("uniform:4", 21, 34).packed(), device).unwrap();
    let x = Tensor::<2>::zeros([2, 33], device);
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| weight.linear(x))).unwrap_err();
    let message = refused.downcast_ref::<String>().unwrap();
    assert!(message.contains("expected 34, got 33"), "{message}");
}

fn an_empty_batch_has_an_empty_result(device: &Device) {
    let weight = PatternTensors::new(&Case::new("uniform:4", 21, 34).packed(), device).unwrap();
    let y = weight.linear(Tensor::<3>::zeros([2, 0, 34], (device, DType::F32)));
    assert_eq!((y.dims(), y.dtype()), ([2, 0, 21], DType::F32));
}

/// Bounds on rounding hold for most inputs, not all: the cases are always the same, unless `PROPTEST_RNG_SEED` asks for
/// others.
fn config(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases) };
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}

/// Says once for each test that it has no device to run on.
fn skipped() {
    static SAID: std::sync::Mutex<BTreeSet<String>> = std::sync::Mutex::new(BTreeSet::new());
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    if SAID.lock().unwrap().insert(test.clone()) {
        println!("skipped, no device: {test}");
    }
}

/// The suite for one backend; its tests are skipped, and say so, where `$device` is `None`.
macro_rules! suite {
    ($backend:ident, $device:expr, $cases:expr) => {
        mod $backend {
            use super::*;

            fn on(test: impl FnOnce(&Device)) {
                match $device {
                    Some(device) => test(&device),
                    None => skipped(),
                }
            }

            proptest! {
                #![proptest_config(config($cases))]

                #[test]
                fn linear_is_the_product_with_the_weight(case in cases()) {
                    on(|device| super::linear_is_the_product_with_the_weight(device, &case));
                }

                #[test]
                fn synthesis_is_the_definition(case in cases()) {
                    on(|device| super::synthesis_is_the_definition(device, &case));
                }

                #[test]
                fn codes_decode_to_the_same_integers(case in cases()) {
                    on(|device| super::codes_decode_to_the_same_integers(device, &case));
                }

                #[test]
                fn rotations_agree(rows in 1usize..5, n in 1usize..600, seed in any::<u64>()) {
                    on(|device| super::rotations_agree(device, rows, n, seed));
                }

                #[test]
                fn similarities_are_cosines(
                    tiles in 1usize..20, patterns in 1usize..20, len in 1usize..70, seed in any::<u64>()
                ) {
                    on(|device| super::similarities_are_cosines(device, tiles, patterns, len, seed));
                }
            }

            #[test]
            fn every_codec_and_rate_agrees() {
                on(super::every_codec_and_rate_agrees);
            }

            #[test]
            fn wide_rotations_agree() {
                on(|device| {
                    [1536, 2048, 4096, 8192, 11008].into_iter().for_each(|n| super::rotations_agree(device, 2, n, 5))
                });
            }

            #[cfg(feature = "autodiff")]
            #[test]
            fn gradients_agree_with_the_definition() {
                on(|device| {
                    for spec in SPECS {
                        gradients::agree_with_the_definition(device, &Case::new(spec, 19, 22));
                    }
                });
            }

            #[cfg(feature = "autodiff")]
            #[test]
            fn gradients_agree_with_finite_differences() {
                on(|device| {
                    for spec in FEW {
                        gradients::agree_with_finite_differences(device, &Case::new(spec, 19, 22));
                    }
                });
            }

            #[cfg(feature = "autodiff")]
            #[test]
            fn gradients_of_protected_columns_are_those_of_the_dense_weight() {
                on(|device| FEW.into_iter().for_each(|spec| gradients::of_protected_columns(device, spec)));
            }

            #[cfg(feature = "autodiff")]
            #[test]
            fn gradients_of_a_low_rank_part_are_those_of_the_dense_weight() {
                on(|device| FEW.into_iter().for_each(|spec| gradients::of_low_rank_parts(device, spec)));
            }

            #[cfg(feature = "autodiff")]
            #[test]
            fn gradients_of_rows_add_up() {
                on(gradients::of_rows_add_up);
            }

            #[cfg(feature = "autodiff")]
            #[test]
            fn training_multiplies_in_f32() {
                on(|device| FEW.into_iter().for_each(|spec| gradients::are_of_products_in_f32(device, spec)));
            }

            #[test]
            fn projections_are_their_parts() {
                on(layers::projections_are_their_parts);
            }

            #[test]
            fn feed_forwards_are_their_projections() {
                on(layers::feed_forwards_are_their_projections);
            }

            #[test]
            fn attention_is_its_definition() {
                on(layers::attention_is_its_definition);
            }

            #[cfg(feature = "autodiff")]
            #[test]
            fn steps_have_gradients() {
                on(layers::steps_have_gradients);
            }

            #[test]
            fn half_precision_activations_are_summed_in_f32() {
                on(super::half_precision_activations_are_summed_in_f32);
            }

            #[test]
            fn a_weight_reads_back_as_it_was() {
                on(super::a_weight_reads_back_as_it_was);
            }

            #[test]
            fn protected_columns_replace_the_codes() {
                on(super::protected_columns_replace_the_codes);
            }

            #[test]
            fn activations_of_another_width_are_refused() {
                on(super::activations_of_another_width_are_refused);
            }

            #[test]
            fn an_empty_batch_has_an_empty_result() {
                on(super::an_empty_batch_has_an_empty_result);
            }
        }
    };
}

#[cfg(feature = "flex")]
suite!(flex, Some(Device::flex()), 48);

#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "Burn's ndarray backend is deprecated, and still offered here")]
mod deprecated {
    use super::*;
    suite!(ndarray, Some(Device::ndarray()), 24);
}

#[cfg(feature = "wgpu")]
suite!(wgpu, Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)), 24);

#[cfg(feature = "cuda")]
suite!(cuda, cuda_device(), 48);

/// The first CUDA device, where there is one.
#[cfg(feature = "cuda")]
fn cuda_device() -> Option<Device> {
    static FOUND: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    let open = || {
        let device = Device::cuda(0);
        let probed = probe_device(&device);
        println!("CUDA: {}", probed.as_ref().map_or_else(ToString::to_string, |()| format!("on {device:?}")));
        probed.is_ok().then_some(device)
    };
    FOUND.get_or_init(open).clone()
}

/// On cubecl-cpu every kernel is compiled for seconds, and Burn's own products longer: those of a product and of rows
/// run once. What surrounds a product runs on the other backends.
#[cfg(feature = "cpu")]
#[test]
fn cubecl_cpu_runs_products_and_rows() {
    let device = Device::cpu();
    // 24 = 3·8: both passes of the rotation, and the product.
    let case = Case::new(FEW[0], 19, 24);
    let (packed, (x, tensor)) = (case.packed(), case.activations(&device));
    let y = host(PatternTensors::new(&packed, &device).unwrap().linear(tensor));
    let dense = reference::synthesize(&packed);
    for (i, y) in y.into_iter().enumerate() {
        let (x, row) = (&x.as_slice()[i / 19 * 24..][..24], &dense.as_slice()[i % 19 * 24..][..24]);
        let bound = 16.0 * EPSILON * 24f64.sqrt() * norm(x) * norm(row);
        assert!((f64::from(y) - dot(x, row)).abs() <= bound, "output {i}: {y}");
    }
    // Two fields in one stream, and rows by their numbers.
    let packed = Case { rotation: None, ..Case::new(FEW[2], 19, 24) }.packed();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(vec![4i32], [1]), &device);
    let row = host(PatternTensors::new(&packed, &device).unwrap().rows(rows));
    assert_same("row 4", &row, &reference::synthesize(&packed).as_slice()[4 * 24..][..24]);
}
