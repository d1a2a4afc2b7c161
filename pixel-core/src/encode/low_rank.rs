//! The low-rank part of a weight: two thin factors in addition to the codes.
//!
//! ```text
//! W·Q ≈ 2^exponent · ( diag(row_scales) · decoded + up · down ),   up [d_output, rank], down [rank, d_input]
//! ```
//!
//! A few directions in which a weight is large (outlier columns, a common mean, a spike of its spectrum) are expensive
//! for a codec, because its error is a share of everything that it codes; stored separately they cost
//! `rank·(d_output + d_input)` numbers. The factors live in the basis of the rotation, as the codes do: layers that
//! share their rotated inputs go on to share them, and a direction along one input is spread over all of them before it
//! is rounded.
//!
//! This module defines what is stored; `pixel-experimental` finds the factors and the rank.
//!
//! Sources: Yao et al., *ZeroQuant-V2* (2023), and Zhang et al., *LQER* (2024), which add a low-rank part to rounded
//! weights; Saha et al., *CALDERA* (2024), which rounds its factors too.

use crate::codec::{Stream, StreamBytes, StreamSpec, StreamType, check_finite};
use crate::error::{ConfigError, FormatError};
use crate::math::Exponent;
use crate::math::metrics::bits_per_weight;
use crate::matrix::{Matrix, Shape};
use half::f16;
use serde::{Deserialize, Serialize};

/// Values of a factor in 8 bits that share one scale: an eighth of a bit for each, and 128 rotated numbers reach no
/// more than some 2.7 of their deviations.
pub const FACTOR_GROUP: usize = 128;

/// The names of the streams: each factor as `rank` vectors, and their scales in 8 bits.
const DOWN: [&str; 2] = ["low_rank_down", "low_rank_down_scales"];
const UP: [&str; 2] = ["low_rank_up", "low_rank_up_scales"];

/// How the numbers of the factors are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FactorStorage {
    /// Whole numbers of −127 to 127, with one F16 scale for [`FACTOR_GROUP`] of them: 8.125 bits a number.
    #[default]
    Int8,
    /// Half precision.
    F16,
}

impl std::fmt::Display for FactorStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Int8 => "int8",
            Self::F16 => "f16",
        })
    }
}

/// How large a low-rank part is and how it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowRankSpec {
    /// The rank, from 1 to the shorter side of the weight.
    pub rank: usize,
    /// How the factors are stored.
    pub storage: FactorStorage,
}

impl LowRankSpec {
    /// Bytes stored for the part of a weight of `shape`.
    pub fn num_bytes(self, shape: Shape) -> usize {
        streams(shape, Some(self)).iter().map(StreamSpec::num_bytes).sum()
    }

    /// Bits per weight that the part adds to a weight of `shape`.
    pub fn bits_per_weight(self, shape: Shape) -> f64 {
        bits_per_weight(self.num_bytes(shape) as u64, shape.num_weights() as u64)
    }

    /// Refuses ranks that a weight of `shape` cannot have.
    ///
    /// # Errors
    /// [`ConfigError::Rank`].
    pub fn check(self, shape: Shape) -> Result<(), ConfigError> {
        let largest = shape.d_output().min(shape.d_input());
        if (1..=largest).contains(&self.rank) { Ok(()) } else { Err(ConfigError::Rank { rank: self.rank, shape }) }
    }
}

impl std::fmt::Display for LowRankSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} in {}", self.rank, self.storage)
    }
}

/// A matrix of low rank as the product of two factors, in units of the weight that it is part of.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRank {
    /// `[d_output, rank]`.
    pub up: Matrix,
    /// `[rank, d_input]`, in the basis of the weight's rotation.
    pub down: Matrix,
}

impl LowRank {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.down.shape().d_output()
    }

    /// The shape of the product.
    ///
    /// # Panics
    /// If the factors do not fit one another.
    pub fn shape(&self) -> Shape {
        assert_eq!(self.up.shape().d_input(), self.rank(), "columns of `up` and rows of `down`");
        Shape::new(self.up.shape().d_output(), self.down.shape().d_input()).expect("sides of two matrices")
    }

    /// `up · down`.
    ///
    /// # Panics
    /// If the factors do not fit one another.
    pub fn product(&self) -> Matrix {
        let mut product = Matrix::zeros(self.shape());
        self.add_scaled(&mut product, 1.0);
        product
    }

    /// `weight += factor · up · down`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn add_scaled(&self, weight: &mut Matrix, factor: f32) {
        assert_eq!(weight.shape(), self.shape(), "shapes of the weight and its low-rank part");
        let (n, rank) = (weight.shape().d_input(), self.rank());
        let rows = weight.as_mut_slice().chunks_exact_mut(n).zip(self.up.as_slice().chunks_exact(rank));
        for (row, up) in rows {
            add_row(row, up.iter().map(|up| factor * up), self.down.as_slice());
        }
    }
}

/// `row += Σ_k up[k] · down[k]`, one vector after the other.
fn add_row(row: &mut [f32], up: impl Iterator<Item = f32>, down: &[f32]) {
    for (up, down) in up.zip(down.chunks_exact(row.len())) {
        row.iter_mut().zip(down).for_each(|(w, d)| *w += up * d);
    }
}

/// One factor as it is stored: `rank` vectors of `length` numbers, one after the other.
#[derive(Debug, Clone, PartialEq)]
enum Factor {
    Int8 { values: Vec<i8>, scales: Vec<f16> },
    F16(Vec<f16>),
}

impl Factor {
    fn round(vectors: &[f32], length: usize, storage: FactorStorage) -> Self {
        match storage {
            FactorStorage::F16 => Self::F16(vectors.iter().map(|&v| f16::from_f32(v)).collect()),
            FactorStorage::Int8 => {
                let (mut values, mut scales) = (Vec::with_capacity(vectors.len()), Vec::new());
                for group in vectors.chunks_exact(length).flat_map(|vector| vector.chunks(FACTOR_GROUP)) {
                    let largest = group.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
                    let scale = f16::from_f32(largest / 127.0);
                    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                    // The scale may have been rounded down: the largest value is then a little over 127.
                    values.extend(group.iter().map(|v| (v * inverse).round().clamp(-127.0, 127.0) as i8));
                    scales.push(scale);
                }
                Self::Int8 { values, scales }
            }
        }
    }

    /// The numbers, `[rank, length]`, exact.
    fn decode(&self, length: usize) -> Vec<f32> {
        match self {
            Self::F16(values) => values.iter().map(|v| v.to_f32()).collect(),
            Self::Int8 { values, scales } => {
                let groups = values.chunks_exact(length).flat_map(|vector| vector.chunks(FACTOR_GROUP));
                groups
                    .zip(scales)
                    .flat_map(|(group, scale)| group.iter().map(move |&v| f32::from(v) * scale.to_f32()))
                    .collect()
            }
        }
    }

    /// The factor from its streams, the first of `streams`.
    fn take(names: [&'static str; 2], streams: &mut impl Iterator<Item = Stream>) -> Result<Self, FormatError> {
        match streams.next() {
            Some(Stream::F16(values)) => Ok(Self::F16(values)),
            Some(Stream::I8(values)) => match streams.next() {
                Some(Stream::F16(scales)) => Ok(Self::Int8 { values, scales }),
                _ => Err(FormatError::MissingStream { stream: names[1] }),
            },
            _ => Err(FormatError::MissingStream { stream: names[0] }),
        }
    }

    fn check(&self, names: [&'static str; 2]) -> Result<(), FormatError> {
        match self {
            Self::F16(values) => check_finite(names[0], values),
            Self::Int8 { scales, .. } => check_finite(names[1], scales),
        }
    }

    fn into_streams(self) -> Vec<Stream> {
        match self {
            Self::F16(values) => vec![Stream::F16(values)],
            Self::Int8 { values, scales } => vec![Stream::I8(values), Stream::F16(scales)],
        }
    }

    fn stream_bytes(&self) -> Vec<StreamBytes<'_>> {
        match self {
            Self::F16(values) => vec![StreamBytes::Halves(values)],
            Self::Int8 { values, scales } => vec![StreamBytes::Bytes(values), StreamBytes::Halves(scales)],
        }
    }
}

/// The low-rank part of a packed weight, in units of the weight's power of two.
#[derive(Debug, Clone, PartialEq)]
pub struct LowRankFactors {
    spec: LowRankSpec,
    shape: Shape,
    down: Factor,
    up: Factor,
}

impl LowRankFactors {
    /// Rounds `low_rank` as part of a weight in units of `2^exponent`. Each vector of `down` is brought, by a power of
    /// two, to a root mean square near 1, so that the numbers of both factors suit F16 whatever the weight's size; what
    /// was rounded before is rounded to itself.
    ///
    /// # Errors
    /// [`FormatError::NotFinite`] if a number is not finite or beyond F16.
    ///
    /// # Panics
    /// If the factors do not fit one another.
    pub(crate) fn round(low_rank: &LowRank, exponent: Exponent, storage: FactorStorage) -> Result<Self, FormatError> {
        let (shape, rank) = (low_rank.shape(), low_rank.rank());
        let (m, n) = (shape.d_output(), shape.d_input());
        let unit = f64::from(exponent.inverse());
        let mut down = low_rank.down.as_slice().to_vec();
        let mut up = vec![0.0f32; rank * m];
        let factors = [(DOWN[0], &low_rank.down), (UP[0], &low_rank.up)];
        for (stream, values) in factors.map(|(stream, factor)| (stream, factor.as_slice())) {
            if let Some(index) = values.iter().position(|value| !value.is_finite()) {
                return Err(FormatError::NotFinite { stream, index, value: values[index] });
            }
        }
        for (k, down) in down.chunks_exact_mut(n).enumerate() {
            let power = down.iter().map(|&d| f64::from(d) * f64::from(d)).sum::<f64>() / n as f64;
            let scale = match power.sqrt() {
                near if near == 0.0 || (0.5..4.0).contains(&near) => 1.0,
                far => far.log2().floor().exp2(),
            };
            down.iter_mut().for_each(|d| *d = (f64::from(*d) / scale) as f32);
            for (row, up) in up[k * m..(k + 1) * m].iter_mut().enumerate() {
                *up = (f64::from(low_rank.up.as_slice()[row * rank + k]) * scale * unit) as f32;
            }
        }
        let spec = LowRankSpec { rank, storage };
        let (down, up) = (Factor::round(&down, n, storage), Factor::round(&up, m, storage));
        Self { spec, shape, down, up }.checked()
    }

    fn checked(self) -> Result<Self, FormatError> {
        self.down.check(DOWN)?;
        self.up.check(UP)?;
        Ok(self)
    }

    /// The part of a weight of `shape` from its streams.
    ///
    /// # Errors
    /// [`FormatError`] if a scale or a number is not finite. Types and lengths have been checked.
    pub(crate) fn new(shape: Shape, spec: LowRankSpec, streams: Vec<Stream>) -> Result<Self, FormatError> {
        let mut streams = streams.into_iter();
        let down = Factor::take(DOWN, &mut streams)?;
        let up = Factor::take(UP, &mut streams)?;
        Self { spec, shape, down, up }.checked()
    }

    /// Rank and storage.
    pub const fn spec(&self) -> LowRankSpec {
        self.spec
    }

    /// The numbers of `down`, `[rank, d_input]`, exact.
    pub fn down(&self) -> Vec<f32> {
        self.down.decode(self.shape.d_input())
    }

    /// The numbers of `up` in units of the weight's power of two, transposed: `[rank, d_output]`, exact.
    pub fn up(&self) -> Vec<f32> {
        self.up.decode(self.shape.d_output())
    }

    /// What they stand for, in units of the source; `exponent` is the weight's.
    pub(crate) fn decode(&self, exponent: Exponent) -> LowRank {
        let (m, n, rank) = (self.shape.d_output(), self.shape.d_input(), self.spec.rank);
        let unit = exponent.unit();
        let (vectors, mut up) = (self.up(), vec![0.0; m * rank]);
        for (k, vector) in vectors.chunks_exact(m).enumerate() {
            vector.iter().enumerate().for_each(|(row, value)| up[row * rank + k] = value * unit);
        }
        let matrix = |m, n, data| Shape::new(m, n).and_then(|shape| Matrix::new(shape, data));
        let matrix = |m, n, data| matrix(m, n, data).expect("factors of a weight");
        LowRank { up: matrix(m, rank, up), down: matrix(rank, n, self.down()) }
    }

    /// The streams, in the order of [`streams`].
    pub(crate) fn into_streams(self) -> Vec<Stream> {
        [self.down.into_streams(), self.up.into_streams()].concat()
    }

    /// The same, borrowed.
    pub(crate) fn stream_bytes(&self) -> Vec<StreamBytes<'_>> {
        [self.down.stream_bytes(), self.up.stream_bytes()].concat()
    }
}

/// A low-rank part decoded for synthesis, row by row.
#[derive(Debug)]
pub(crate) struct DecodedLowRank {
    /// `[rank, d_input]`.
    down: Vec<f32>,
    /// `[d_output, rank]`.
    up: Vec<f32>,
    rank: usize,
}

impl DecodedLowRank {
    pub(crate) fn new(factors: &LowRankFactors) -> Self {
        let LowRank { up, down } = factors.decode(Exponent::ZERO);
        Self { down: down.into_vec(), up: up.into_vec(), rank: factors.spec.rank }
    }

    /// Adds row `row` of the part to `weights`, in units of the weight's power of two.
    pub(crate) fn add(&self, row: usize, weights: &mut [f32]) {
        add_row(weights, self.up[row * self.rank..][..self.rank].iter().copied(), &self.down);
    }
}

/// What is stored for the low-rank part of a weight of `shape`: each factor as `rank` vectors.
pub(crate) fn streams(shape: Shape, spec: Option<LowRankSpec>) -> Vec<StreamSpec> {
    let Some(LowRankSpec { rank, storage }) = spec else { return Vec::new() };
    let factor = |[values, scales]: [&'static str; 2], length: usize| match storage {
        FactorStorage::F16 => vec![StreamSpec { name: values, dtype: StreamType::F16, shape: vec![rank, length] }],
        FactorStorage::Int8 => vec![
            StreamSpec { name: values, dtype: StreamType::I8, shape: vec![rank, length] },
            StreamSpec { name: scales, dtype: StreamType::F16, shape: vec![rank, length.div_ceil(FACTOR_GROUP)] },
        ],
    };
    [factor(DOWN, shape.d_input()), factor(UP, shape.d_output())].concat()
}
