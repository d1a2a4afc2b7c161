use super::*;
use crate::codec::{CodecSpec, decode};
use dictionary::{RATES, STEP};
use proptest::prelude::*;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

fn build(bits: f64) -> Box<dyn Codec> {
    CodecSpec::new("lapped", bits).with_option("beam", 1).build().unwrap()
}

/// The stored format in its simplest form: nibble by nibble over a row that is long enough, in integers.
fn decode_by_definition(bits: f64, shape: Shape, words: &[u32]) -> Vec<f32> {
    let rate = Rate::of(bits).unwrap();
    let (patterns, span) = (rate.patterns(), rate.span);
    let (per_eight, n) = ((2.0 * bits) as usize, shape.d_input());
    let period = [1.0, 3.0, 1.0, 5.0, 3.0, 1.0][RATES.iter().position(|rate| *rate == bits).unwrap()] as usize;
    let mut decoded = Vec::new();
    for words in words.chunks_exact(words.len() / shape.d_output()) {
        let mut row = vec![0i32; n.next_multiple_of(8) + span];
        for t in 0..n.div_ceil(8) * per_eight {
            let code = (words[t / 8] >> (t % 8 * 4) & 15) as usize;
            for j in 0..span {
                row[8 * t / per_eight + j] += (patterns[(t % period * 16 + code) * span + j] / STEP) as i32;
            }
        }
        decoded.extend(row[..n].iter().map(|sum| *sum as f32 * STEP));
    }
    decoded
}

#[test]
fn a_set_padding_bit_is_refused() {
    // Six times 12 bits: bits 72 to 95 of a row are padding.
    let (codec, shape) = (build(1.5), Shape::new(2, 44).unwrap());
    for bit in 0..96 {
        let mut words = vec![0; 6];
        words[3 + bit / 32] |= 1 << (bit % 32);
        let checked = codec.check(shape, &Codes { streams: vec![Stream::U32(words)] });
        assert_eq!(checked.is_err(), bit >= 72, "bit {bit}: {checked:?}");
    }
}

proptest! {
    #[test]
    fn any_shape_round_trips(d_output in 1usize..5, d_input in 1usize..70, rate in 0usize..6, seed in any::<u64>()) {
        let (codec, shape) = (build(RATES[rate]), Shape::new(d_output, d_input).unwrap());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut weight: Vec<f32> = (0..shape.num_weights()).map(|_| rng.sample(StandardNormal)).collect();
        // Codecs are given rows of unit root mean square.
        for row in weight.chunks_exact_mut(d_input) {
            let rms = (row.iter().map(|w| w * w).sum::<f32>() / d_input as f32).sqrt();
            row.iter_mut().for_each(|w| *w /= rms);
        }
        let weight_ref = MatrixRef::new(shape, &weight).unwrap();
        let WeightEncoder::Rows(encoder) = codec.encoder(weight_ref) else { panic!("rows") };
        let mut reported = Vec::new();
        let codes = encoder.encode_rows(weight_ref, None, &mut |row, decoded| {
            assert_eq!(row * d_input, reported.len());
            reported.extend_from_slice(decoded);
        });
        prop_assert!(codec.check(shape, &codes).is_ok());
        let decoded = decode(&*codec, shape, &codes);
        prop_assert_eq!(decoded.as_slice(), reported);
        let error: f32 = weight.iter().zip(decoded.as_slice()).map(|(w, d)| (w - d).powi(2)).sum();
        let energy: f32 = weight.iter().map(|w| w.powi(2)).sum();
        prop_assert!(error < 1.5 * energy + 1.0, "{error} of {energy}");
    }

    #[test]
    fn any_words_that_pass_the_check_decode_by_the_definition(
        d_input in 1usize..150, rate in 0usize..6, seed in any::<u64>(),
    ) {
        let (codec, shape) = (build(RATES[rate]), Shape::new(2, d_input).unwrap());
        let row_words = codec.streams(shape)[0].shape[1];
        let row_bits = d_input.div_ceil(8) * (8.0 * RATES[rate]) as usize;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut words: Vec<u32> = (0..2 * row_words).map(|_| rng.next_u32()).collect();
        for row in words.chunks_exact_mut(row_words) {
            *row.last_mut().unwrap() &= u32::MAX >> (32 * row_words - row_bits);
        }
        let by_definition = decode_by_definition(RATES[rate], shape, &words);
        let codes = Codes { streams: vec![Stream::U32(words)] };
        prop_assert_eq!(codec.check(shape, &codes), Ok(()));
        let decoded = decode(&*codec, shape, &codes);
        prop_assert_eq!(decoded.as_slice(), &by_definition[..]);
        for (i, &weight) in by_definition.iter().enumerate() {
            prop_assert_eq!(codec.decode_weight(shape, &codes, i / d_input, i % d_input), weight);
        }
    }
}
