use super::*;
use crate::codec::{CodecSpec, Stream, decode};
use crate::matrix::Matrix;
use approx::relative_eq;
use dictionary::{RATES, STEP, sub_dictionaries};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

fn build(bits: f64, beam: u32) -> Box<dyn Codec> {
    CodecSpec::new("additive", bits).with_option("beam", beam).build().unwrap()
}

fn gaussian(d_output: usize, d_input: usize, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let shape = Shape::new(d_output, d_input).unwrap();
    Matrix::new(shape, (0..shape.num_weights()).map(|_| rng.sample(StandardNormal)).collect()).unwrap()
}

/// The codes of `weight`, and what the encoder says they decode to.
fn encode(codec: &dyn Codec, weight: &Matrix) -> (Codes, Matrix) {
    let shape = weight.shape();
    let mut reported = Matrix::zeros(shape);
    let mut encoder = codec.encoder(weight.as_ref()).into_blocks().unwrap();
    let (mut values, mut decoded) = (vec![0.0; shape.d_output() * GROUP], vec![0.0; shape.d_output() * GROUP]);
    for block in 0..shape.d_input().div_ceil(GROUP) {
        weight.as_ref().copy_columns(block * GROUP, &mut values);
        encoder.encode_block(block, &values, &mut decoded);
        for (row, group) in reported.as_mut_slice().chunks_exact_mut(shape.d_input()).zip(decoded.chunks_exact(GROUP)) {
            row[block * GROUP..].iter_mut().zip(group).for_each(|(out, value)| *out = *value);
        }
    }
    (encoder.finish(), reported)
}

/// The stored format in its simplest form: bit by bit, one weight at a time, in integers.
fn decode_by_definition(bits: f64, shape: Shape, words: &[u32]) -> Matrix {
    let tables = sub_dictionaries(bits).unwrap();
    let row_words = words.len() / shape.d_output();
    let mut decoded = Matrix::zeros(shape);
    for (row, values) in decoded.as_mut_slice().chunks_exact_mut(shape.d_input()).enumerate() {
        for (column, value) in values.iter_mut().enumerate() {
            let mut sum = 0;
            for (m, table) in tables.iter().enumerate() {
                let place = (column / 8 * tables.len() + m) * 4;
                let code = words[row * row_words + place / 32] >> (place % 32) & 15;
                sum += i32::from(table[code as usize][column % 8]);
            }
            *value = sum as f32 * STEP;
        }
    }
    decoded
}

/// `Σ(w − ŵ)² / Σw²` with the best scale for each row.
fn relative_mse(weight: &Matrix, decoded: &Matrix) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    let (mut error, mut energy) = (0.0, 0.0);
    for row in 0..weight.shape().d_output() {
        let (w, d) = (weight.as_ref().row(row), decoded.as_ref().row(row));
        error += dot(w, w) - dot(w, d).powi(2) / dot(d, d);
        energy += dot(w, w);
    }
    error / energy
}

fn mse_of(bits: f64, beam: u32, weight: &Matrix) -> f64 {
    relative_mse(weight, &encode(&*build(bits, beam), weight).1)
}

#[test]
fn codes_decode_by_their_definition_and_as_the_encoder_reports() {
    for bits in RATES {
        let codec = build(bits, 4);
        let weight = gaussian(3, 44, 1);
        let (codes, reported) = encode(&*codec, &weight);
        codec.check(weight.shape(), &codes).unwrap();
        assert_eq!(decode(&*codec, weight.shape(), &codes), reported, "{bits} bits");
        assert_eq!(decode_by_definition(bits, weight.shape(), codes.streams[0].words()), reported, "{bits} bits");
    }
}

#[test]
fn a_set_padding_bit_is_refused() {
    // Six groups of 12 bits: bits 72 to 95 of a row are padding.
    let (codec, shape) = (build(1.5, 1), Shape::new(2, 44).unwrap());
    for bit in 0..96 {
        let mut words = vec![0; 6];
        words[3 + bit / 32] |= 1 << (bit % 32);
        let checked = codec.check(shape, &Codes { streams: vec![Stream::U32(words)] });
        assert_eq!(checked.is_err(), bit >= 72, "bit {bit}: {checked:?}");
    }
}

#[test]
fn a_wider_beam_is_closer() {
    for bits in [2.0, 2.5, 3.0, 4.0] {
        let weight = gaussian(4, 1024, 2);
        let errors = [1, 4, 16, 64].map(|beam| mse_of(bits, beam, &weight));
        assert!(errors.is_sorted_by(|narrow, wide| wide < narrow), "{bits} bits: {errors:?}");
    }
}

#[test]
fn the_shipped_dictionaries_reach_the_error_that_the_table_states() {
    let weight = gaussian(32, 1024, 3);
    let stated = [(1.0, 0.3321), (1.5, 0.1754), (2.0, 0.0937), (2.5, 0.0490), (3.0, 0.0261), (4.0, 0.0073)];
    for (bits, stated) in stated {
        let error = mse_of(bits, 16, &weight);
        let is_close = relative_eq!(error, stated, epsilon = 0.0, max_relative = 0.02);
        assert!(is_close, "{bits} bits: {error:.5}, stated {stated}");
    }
}

#[test]
fn weights_beyond_the_edge_cost_nothing() {
    let codec = build(1.0, 16);
    let narrow = gaussian(512, 3, 4);
    let mut padded = vec![0.0; 512 * GROUP];
    narrow.as_ref().copy_columns(0, &mut padded);
    let padded = Matrix::new(Shape::new(512, GROUP).unwrap(), padded).unwrap();

    let free = encode(&*codec, &narrow).1;
    let mut bound = vec![0.0; 512 * 3];
    encode(&*codec, &padded).1.as_ref().copy_columns(0, &mut bound);
    let error = |decoded: &[f32]| -> f32 { narrow.as_slice().iter().zip(decoded).map(|(w, d)| (w - d).powi(2)).sum() };
    assert!(error(free.as_slice()) < 0.5 * error(&bound), "{} against {}", error(free.as_slice()), error(&bound));
}

proptest! {
    #[test]
    fn any_shape_round_trips(
        d_output in 1usize..5, d_input in 1usize..70, rate in 0usize..6, beam in 1u32..=64, seed in any::<u64>(),
    ) {
        let (codec, weight) = (build(RATES[rate], beam), gaussian(d_output, d_input, seed));
        let (codes, reported) = encode(&*codec, &weight);
        prop_assert_eq!(codes.streams[0].len(), codec.streams(weight.shape())[0].len());
        prop_assert!(codec.check(weight.shape(), &codes).is_ok());
        prop_assert_eq!(decode(&*codec, weight.shape(), &codes), reported);
    }

    #[test]
    fn any_words_that_pass_the_check_decode_by_the_definition(
        d_input in 1usize..70, rate in 0usize..6, seed in any::<u64>(),
    ) {
        let (codec, shape) = (build(RATES[rate], 1), Shape::new(2, d_input).unwrap());
        let row_words = codec.streams(shape)[0].shape[1];
        let row_bits = d_input.div_ceil(GROUP) * (8.0 * RATES[rate]) as usize;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut words: Vec<u32> = (0..2 * row_words).map(|_| rng.next_u32()).collect();
        for row in words.chunks_exact_mut(row_words) {
            // The bits of the last word that belong to a group.
            *row.last_mut().unwrap() &= u32::MAX >> (32 * row_words - row_bits);
        }
        let by_definition = decode_by_definition(RATES[rate], shape, &words);
        let codes = Codes { streams: vec![Stream::U32(words)] };
        prop_assert_eq!(codec.check(shape, &codes), Ok(()));
        let decoded = decode(&*codec, shape, &codes);
        prop_assert_eq!(&decoded, &by_definition);
        for (i, &weight) in decoded.as_slice().iter().enumerate() {
            prop_assert_eq!(codec.decode_weight(shape, &codes, i / d_input, i % d_input), weight);
        }
    }
}
