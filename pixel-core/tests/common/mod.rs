//! What several test programs share.

#![allow(dead_code, reason = "each program uses a part of it")]

use pixel_core::codec::{FAMILIES, Stream, StreamBytes};
use pixel_core::plan::LowRankFitter;
use pixel_core::{CodecSpec, CodingSpec, Encoder, LowRank, Matrix, Moments, Outcome, PackedWeight, Shape, WeightError};
use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;

/// A fitter that fits nothing: factors that depend on their places alone.
#[derive(Debug)]
pub(crate) struct FixedFactors;

impl FixedFactors {
    fn part(shape: Shape, rank: usize) -> LowRank {
        let matrix = |m: usize, n: usize| {
            let values = (0..m * n).map(|i| (i * 37 % 23) as f32 / 11.0 - 1.0).collect();
            Matrix::new(Shape::new(m, n).unwrap(), values).unwrap()
        };
        LowRank { up: matrix(shape.d_output(), rank), down: matrix(rank, shape.d_input()) }
    }
}

impl LowRankFitter for FixedFactors {
    fn compress(
        &self,
        weight: Matrix,
        spec: &CodingSpec,
        moments: Option<Moments>,
    ) -> Result<(PackedWeight, Outcome), WeightError> {
        let part = Self::part(weight.shape(), spec.low_rank.unwrap().rank);
        Encoder::new(spec).with_moments(moments).with_low_rank(&part).encode(weight)
    }

    fn residual(&self, mut weight: Matrix, spec: &CodingSpec, _: Option<Moments>) -> Result<Matrix, WeightError> {
        assert_eq!(spec.rotation, None, "these factors know no rotation");
        Self::part(weight.shape(), spec.low_rank.unwrap().rank).add_scaled(&mut weight, -1.0);
        Ok(weight)
    }

    fn peak_bytes(&self, shape: Shape) -> u64 {
        4 * shape.num_weights() as u64
    }
}

/// A codec at one of its rates, quick to search.
pub(crate) fn spec(family: usize, rate: usize) -> CodecSpec {
    let family = FAMILIES[family];
    let spec = CodecSpec::new(family.name(), family.rates()[rate % family.rates().len()]);
    match family.name() {
        "trellis" => spec.with_option("window", 9),
        "lapped" => spec.with_option("beam", 16),
        _ => spec,
    }
}

/// `weight` coded as `spec` says, by the moments of its inputs if there are some.
pub(crate) fn encode(
    weight: &Matrix,
    spec: &CodingSpec,
    moments: impl Into<Option<Moments>>,
) -> (PackedWeight, Outcome) {
    Encoder::new(spec).with_moments(moments).encode(weight.clone()).unwrap()
}

/// An error and all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The streams of a weight, to be changed.
pub(crate) fn streams(packed: &PackedWeight) -> Vec<Stream> {
    let own = |bytes: StreamBytes<'_>| match bytes {
        StreamBytes::Words(words) => Stream::U32(words.to_vec()),
        StreamBytes::Halves(halves) => Stream::F16(halves.to_vec()),
        StreamBytes::Bytes(bytes) => Stream::I8(bytes.to_vec()),
    };
    packed.streams().map(|(_, bytes)| own(bytes)).collect()
}

/// Cases that are the same in every run.
pub(crate) fn config(cases: u32) -> ProptestConfig {
    let seed = RngSeed::Fixed(1);
    ProptestConfig { failure_persistence: None, rng_seed: seed, ..ProptestConfig::with_cases(cases) }
}

/// The archive with its manifest changed and its hash made right again.
pub(crate) fn forged(bytes: &[u8], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    forged_with(bytes, &[], change)
}

/// The archive with its manifest changed, hashes made right again, and `extra` F16 tensors of one value added.
pub(crate) fn forged_with(bytes: &[u8], extra: &[&str], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..start]).unwrap();
    let mut manifest = serde_json::from_str(header["__metadata__"]["pixel"].as_str().unwrap()).unwrap();
    change(&mut manifest);
    let text = manifest.to_string();
    header["__metadata__"]["pixel_blake3"] = blake3::hash(text.as_bytes()).to_hex().to_string().into();
    header["__metadata__"]["pixel"] = text.into();
    let mut data = bytes[start..].to_vec();
    for name in extra {
        header[name] =
            serde_json::json!({ "dtype": "F16", "shape": [1], "data_offsets": [data.len(), data.len() + 2] });
        data.extend([0, 0]);
    }
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}
