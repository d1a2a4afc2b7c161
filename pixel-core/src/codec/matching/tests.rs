//! What the codec promises.

use super::*;
use crate::codec::{CodecSpec, decode};
use crate::matrix::Matrix;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_distr::{Distribution, StandardNormal};

fn gaussian(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let values = (0..rows * cols).map(|_| StandardNormal.sample(&mut rng)).collect();
    Matrix::new(Shape::new(rows, cols).unwrap(), values).unwrap()
}

/// Encodes, and returns the codes and what they decode to; checks that the encoder reported exactly that.
fn round_trip(codec: &dyn Codec, weight: &Matrix) -> (Codes, Matrix) {
    let (shape, width) = (weight.shape(), codec.block_width(weight.shape()));
    let mut encoder = codec.encoder(weight.as_ref()).into_blocks().unwrap();
    let mut values = vec![0.0; shape.d_output() * width];
    let (mut block, mut reported) = (values.clone(), Matrix::zeros(shape));
    for start in (0..shape.d_input()).step_by(width).rev() {
        weight.as_ref().copy_columns(start, &mut values);
        encoder.encode_block(start / width, &values, &mut block);
        let inside = width.min(shape.d_input() - start);
        for (out, row) in reported.as_mut_slice().chunks_mut(shape.d_input()).zip(block.chunks(width)) {
            out[start..start + inside].copy_from_slice(&row[..inside]);
        }
    }
    let codes = encoder.finish();
    let specs = codec.streams(shape);
    assert_eq!(codes.streams.len(), specs.len());
    for (stream, spec) in codes.streams.iter().zip(&specs) {
        assert_eq!((stream.dtype(), stream.len()), (spec.dtype, spec.len()), "{}", spec.name);
    }
    codec.check(shape, &codes).unwrap();
    let decoded = decode(codec, shape, &codes);
    assert_eq!(reported, decoded);
    for row in [0, shape.d_output() / 2, shape.d_output() - 1] {
        for col in [0, shape.d_input() / 2, shape.d_input() - 1] {
            assert_eq!(codec.decode_weight(shape, &codes, row, col), decoded.as_ref().row(row)[col], "{row} {col}");
        }
    }
    (codes, decoded)
}

fn relative_error(a: &Matrix, b: &Matrix) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = a.as_slice().iter().zip(b.as_slice()).map(|(a, b)| f64::from(a - b));
    square(&mut { difference }) / square(&mut a.as_slice().iter().map(|x| f64::from(*x)))
}

#[test]
fn a_gaussian_weight_is_coded_better_than_by_scalar_rounding() {
    let weight = gaussian(64, 256, 1);
    // Lloyd-Max at 1, 2 and 4 bits: .363, .1174, .0095.
    for (bits, limit) in [(1.0, 0.345), (2.0, 0.110), (4.0, 0.0098)] {
        let codec = CodecSpec::new("matching", bits).build().unwrap();
        let (_, decoded) = round_trip(&*codec, &weight);
        let error = relative_error(&weight, &decoded);
        assert!(error < limit, "{bits} bits: {error}");
    }
}

#[test]
fn the_identity_is_one_pattern_a_tile() {
    let mut weight = Matrix::zeros(Shape::new(64, 64).unwrap());
    weight.as_mut_slice().iter_mut().step_by(65).for_each(|value| *value = 8.0);
    let codec = CodecSpec::new("matching", 1.0).build().unwrap();
    assert!(relative_error(&weight, &round_trip(&*codec, &weight).1) < 1e-4);
    let whole = CodecSpec::new("matching", 1.0).with_option("tile", 0).build().unwrap();
    assert!(relative_error(&weight, &round_trip(&*whole, &weight).1) < 1e-4);
}

#[test]
fn a_zero_weight_decodes_to_zero() {
    let weight = Matrix::zeros(Shape::new(9, 17).unwrap());
    let codec = CodecSpec::new("matching", 2.0).with_option("learned", 3).build().unwrap();
    assert_eq!(round_trip(&*codec, &weight).1, weight);
}

#[test]
fn learned_patterns_explain_what_repeats() {
    let motif = gaussian(8, 8, 3);
    let values = (0..64 * 64).map(|i| motif.as_slice()[i / 64 % 8 * 8 + i % 8] * (1 + i / 512) as f32).collect();
    let weight = Matrix::new(Shape::new(64, 64).unwrap(), values).unwrap();
    let error = |learned| {
        let codec = CodecSpec::new("matching", 1.0).with_option("learned", learned).build().unwrap();
        relative_error(&weight, &round_trip(&*codec, &weight).1)
    };
    assert!(error(1) < 0.01 * error(0), "{} {}", error(1), error(0));
}

#[test]
fn a_learned_pattern_that_is_not_finite_is_refused() {
    let weight = gaussian(8, 16, 5);
    let codec = CodecSpec::new("matching", 1.0).with_option("learned", 2).build().unwrap();
    let (mut codes, _) = round_trip(&*codec, &weight);
    let Stream::F16(patterns) = &mut codes.streams[1] else { panic!("patterns are F16") };
    patterns[70] = f16::NAN;
    let error = codec.check(weight.shape(), &codes).unwrap_err();
    assert!(matches!(error, FormatError::NotFinite { stream: "patterns", index: 70, .. }), "{error}");
}

#[test]
fn the_codes_do_not_depend_on_the_number_of_threads() {
    let weight = gaussian(40, 24, 9);
    let codec = CodecSpec::new("matching", 2.0).build().unwrap();
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| round_trip(&*codec, &weight).0)
    };
    assert_eq!(with(1), with(4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_shape_round_trips_at_every_tile(
        rows in 1usize..20, cols in 1usize..40, tile in prop::sample::select(vec![0u32, 4, 5, 8, 16]),
        rate in 0usize..7, scale_bits in 0u32..4, learned in 0u32..4, patterns in 3u32..8, seed in 0u64..1000
    ) {
        let weight = gaussian(rows, cols, seed);
        let codec = CodecSpec::new("matching", Matching.rates()[rate])
            .with_option("tile", tile).with_option("scale_bits", scale_bits).with_option("learned", learned)
            .with_option("patterns", patterns).with_option("beam", 2).build();
        if let Ok(codec) = codec {
            let (_, decoded) = round_trip(&*codec, &weight);
            prop_assert!(relative_error(&weight, &decoded) <= 1.0 + 1e-6);
        }
    }

    #[test]
    fn any_words_decode_to_finite_weights(words in prop::collection::vec(any::<u32>(), 24)) {
        let shape = Shape::new(20, 32).unwrap();
        let codec = CodecSpec::new("matching", 1.0).build().unwrap();
        let codes = Codes { streams: vec![Stream::U32(words)] };
        prop_assert_eq!(codec.streams(shape)[0].len(), 24);
        prop_assert!(codec.check(shape, &codes).is_ok());
        prop_assert!(decode(&*codec, shape, &codes).as_slice().iter().all(|value| value.is_finite()));
    }
}
