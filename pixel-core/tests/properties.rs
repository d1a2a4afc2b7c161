//! Properties that hold for every codec, rate and shape.

mod common;

use common::{spec, streams};
use pixel_core::codec::{FAMILIES, Stream};
use pixel_core::compressor::PIXELCompressor;
use pixel_core::math::metrics::relative_error;
use pixel_core::synthesis::reference;
use pixel_core::{CodecSpec, Matrix, MatrixRef, PIXELConfig, PackedWeight, Shape, compress_weight};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Weights in −1 … 1 from an integer hash.
fn weights(len: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_mul(0x9E37_79B9) ^ seed).wrapping_mul(0x85EB_CA6B) >> 8;
    (0..len as u32).map(|i| hash(i) as f32 / 8_388_608.0 - 1.0).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn synthesis_is_the_definition(
        rows in 1usize..45, cols in 1usize..45, family in 0..FAMILIES.len(), rate in 0usize..7,
        rotation in prop::option::of(any::<u64>()), seed in any::<u32>()
    ) {
        let data = weights(rows * cols, seed);
        let weight = MatrixRef::new(Shape::new(rows, cols).unwrap(), &data).unwrap();
        let spec = spec(family, rate);
        let (packed, _) = compress_weight(weight, &spec, rotation).unwrap();
        let error = relative_error(reference::synthesize(&packed).as_slice(), packed.synthesize().as_slice());
        // f32 sums over a row of n against f64: a few ε·√n.
        prop_assert!(error <= 4.0 * f64::from(f32::EPSILON) * (cols as f64).sqrt(), "{spec}: {error:e}");
    }

    #[test]
    fn bits_per_weight_counts_every_stored_byte(
        rows in 1usize..80, cols in 1usize..80, family in 0..FAMILIES.len(), rate in 0usize..7
    ) {
        let data = weights(rows * cols, 1);
        let weight = MatrixRef::new(Shape::new(rows, cols).unwrap(), &data).unwrap();
        let (packed, _) = compress_weight(weight, &spec(family, rate), None).unwrap();
        let stored: usize = packed.streams().map(|(_, bytes)| bytes.to_le_bytes().len()).sum();
        prop_assert_eq!(packed.num_bytes(), stored);
        prop_assert_eq!(packed.bits_per_weight(), stored as f64 * 8.0 / (rows * cols) as f64);
    }

    #[test]
    fn unpacking_what_was_packed_gives_the_same_weight(
        rows in 1usize..40, cols in 1usize..40, family in 0..FAMILIES.len(), rate in 0usize..7, seed in any::<u32>()
    ) {
        let data = weights(rows * cols, seed);
        let weight = MatrixRef::new(Shape::new(rows, cols).unwrap(), &data).unwrap();
        let (packed, _) = compress_weight(weight, &spec(family, rate), Some(2)).unwrap();
        let again = PackedWeight::new(packed.header().clone(), streams(&packed)).unwrap();
        prop_assert_eq!(again.synthesize(), packed.synthesize());
    }

    /// What error feedback rests on: it will code the last block first.
    #[test]
    fn the_order_of_the_blocks_does_not_matter(
        rows in 1usize..40, cols in 1usize..150, family in 0..FAMILIES.len(), rate in 0usize..7, seed in any::<u32>()
    ) {
        let data = weights(rows * cols, seed);
        let weight = MatrixRef::new(Shape::new(rows, cols).unwrap(), &data).unwrap();
        let codec = spec(family, rate).build().unwrap();
        let width = codec.block_width(weight.shape());
        let encode = |order: &mut dyn Iterator<Item = usize>| {
            let mut encoder = codec.encoder(weight).into_blocks()?;
            let mut decoded = vec![Vec::new(); cols.div_ceil(width)];
            let mut values = vec![0.0; rows * width];
            for block in order {
                weight.copy_columns(block * width, &mut values);
                decoded[block] = vec![0.0; rows * width];
                encoder.encode_block(block, &values, &mut decoded[block]);
            }
            Some((encoder.finish(), decoded))
        };
        let blocks = cols.div_ceil(width);
        let forward = encode(&mut (0..blocks));
        prop_assert_eq!(forward.is_none(), FAMILIES[family].name() == "lapped");
        prop_assert_eq!(forward, encode(&mut (0..blocks).rev()));
    }

    #[test]
    fn reading_what_was_written_gives_the_same_weights(
        shapes in prop::collection::vec((1usize..40, 1usize..40), 1..4), family in 0..FAMILIES.len(), rate in 0usize..7
    ) {
        let config = PIXELConfig { codec: Some(spec(family, rate)), ..PIXELConfig::default() };
        let compressor = PIXELCompressor::new(config).unwrap();
        let tensors = shapes.iter().enumerate().map(|(i, &(rows, cols))| {
            let weights = weights(rows * cols, i as u32);
            (format!("layer.{i}"), Matrix::new(Shape::new(rows, cols).unwrap(), weights).unwrap())
        });
        let tensors: BTreeMap<String, Matrix> = tensors.collect();
        let model = compressor.compress(&tensors).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        compressor.save(&model, &path).unwrap();
        let loaded = compressor.load(&path).unwrap();
        prop_assert_eq!(compressor.decompress(&loaded), compressor.decompress(&model));
    }

    #[test]
    fn streams_that_do_not_fit_are_refused(
        rows in 1usize..40, cols in 1usize..40, family in 0..FAMILIES.len(), rate in 0usize..7, drop in 0usize..4
    ) {
        let data = weights(rows * cols, 3);
        let weight = MatrixRef::new(Shape::new(rows, cols).unwrap(), &data).unwrap();
        let (packed, _) = compress_weight(weight, &spec(family, rate), None).unwrap();
        let mut streams = streams(&packed);
        let drop = drop % streams.len();
        match &mut streams[drop] {
            Stream::U32(words) => { words.pop(); }
            Stream::F16(halves) => { halves.pop(); }
            Stream::I8(bytes) => { bytes.pop(); }
        }
        prop_assert!(PackedWeight::new(packed.header().clone(), streams.clone()).is_err());
        streams.remove(drop);
        prop_assert!(PackedWeight::new(packed.header().clone(), streams).is_err());
    }
}

#[test]
fn more_bits_mean_less_error() {
    let data: Vec<f32> = weights(64 * 256, 9);
    let weight = MatrixRef::new(Shape::new(64, 256).unwrap(), &data).unwrap();
    for family in FAMILIES {
        let errors: Vec<f64> = (0..family.rates().len())
            .map(|rate| {
                let spec = CodecSpec::new(family.name(), family.rates()[rate]);
                let spec = match family.name() {
                    "trellis" => spec.with_option("window", 10),
                    "lapped" => spec.with_option("beam", 32),
                    _ => spec,
                };
                compress_weight(weight, &spec, Some(1)).unwrap().1.relative_mse()
            })
            .collect();
        assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{}: {errors:?}", family.name());
    }
}
