//! [`PackedWeight`]: a weight as codes and scales, ready to be stored or synthesised. Holding one proves it valid.

use crate::codec::{self, Codec, CodecSpec, Codes, Stream, StreamSpec, StreamType};
use crate::condition::EXPONENT_RANGE;
use crate::error::FormatError;
use crate::low_rank::{self, FactorStorage, LowRank, LowRankFactors, LowRankSpec};
use crate::matrix::Shape;
use crate::metrics::bits_per_weight;
use crate::protected::{self, ProtectedColumns, check_count};
use half::f16;
use std::borrow::Cow;

/// The name of the stream of row scales, of codecs that leave them to the shell.
pub(crate) const ROW_SCALES: &str = "scales";

/// What describes a packed weight beside its streams.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedHeader {
    /// The shape of the weight.
    pub shape: Shape,
    /// The codec.
    pub codec: CodecSpec,
    /// The seed of the rotation's signs, if the weight was rotated.
    pub rotation: Option<u64>,
    /// The power of two by which everything is multiplied.
    pub exponent: i32,
    /// How many columns are protected: stored beside the codes.
    pub protected: usize,
    /// Rank and storage of the low-rank part beside the codes, if there is one.
    pub low_rank: Option<LowRankSpec>,
}

/// A weight matrix as a codec stores it:
///
/// ```text
/// W ≈ 2^exponent · (diag(row_scales) · decoded + up · down) · Qᵀ,   but for the protected columns
/// ```
///
/// # Example
/// ```
/// use pixel_core::{CodecSpec, MatrixRef, Shape, compress_weight};
/// let data: Vec<f32> = (0..64 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
/// let weight = MatrixRef::new(Shape::new(64, 64)?, &data)?;
/// let (packed, error) = compress_weight(weight, &CodecSpec::new("trellis", 4.0).with_option("window", 12), Some(1))?;
/// assert_eq!(packed.num_bytes(), 64 * 64 * 4 / 8 + 64 * 2);
/// assert!(error.relative_mse() < 0.007);
/// let restored = packed.synthesize();
/// assert_eq!(restored.shape(), weight.shape());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PackedWeight {
    header: PackedHeader,
    codec: Box<dyn Codec>,
    row_scales: Vec<f16>,
    codes: Codes,
    protected: ProtectedColumns,
    low_rank: Option<LowRankFactors>,
}

impl Clone for PackedWeight {
    fn clone(&self) -> Self {
        Self {
            header: self.header.clone(),
            codec: self.header.codec.build().expect("it was built before"),
            row_scales: self.row_scales.clone(),
            codes: self.codes.clone(),
            protected: self.protected.clone(),
            low_rank: self.low_rank.clone(),
        }
    }
}

impl PackedWeight {
    /// Puts a weight together from the streams that [`stored_streams`] announces for `header`, in that order.
    ///
    /// # Errors
    /// [`FormatError`] if the streams do not fit the header or hold what no decoder could use.
    pub fn new(header: PackedHeader, mut streams: Vec<Stream>) -> Result<Self, FormatError> {
        if !EXPONENT_RANGE.contains(&header.exponent) {
            return Err(FormatError::Field {
                field: "exponent",
                value: header.exponent.to_string(),
                range: format!("{EXPONENT_RANGE:?}"),
            });
        }
        let codec = header.codec.build()?;
        check_count("protected", header.protected, header.shape.d_input())?;
        if let Some(spec) = header.low_rank {
            spec.check(header.shape)?;
        }
        let specs = stream_specs(&*codec, header.shape, header.protected, header.low_rank);
        check_streams(&specs, &streams)?;
        let low_rank = match header.low_rank {
            None => None,
            Some(spec) => {
                let own = streams.split_off(specs.len() - low_rank::streams(header.shape, Some(spec)).len());
                Some(LowRankFactors::new(header.shape, spec, own)?)
            }
        };
        let protected = match header.protected {
            0 => ProtectedColumns::default(),
            _ => match (streams.pop(), streams.pop()) {
                (Some(Stream::F16(values)), Some(Stream::U32(columns))) => {
                    ProtectedColumns::new(header.shape, columns, values)?
                }
                _ => unreachable!("the last two streams are the protected columns, U32, and their values, F16"),
            },
        };
        let row_scales = match codec.row_scaling() {
            codec::RowScaling::None => Vec::new(),
            codec::RowScaling::RootMeanSquare(_) => match streams.pop() {
                Some(Stream::F16(scales)) => scales,
                _ => unreachable!("the last stream is the row scales, of type F16"),
            },
        };
        codec::check_finite(ROW_SCALES, &row_scales)?;
        let codes = Codes { streams };
        codec.check(header.shape, &codes)?;
        Ok(Self { header, codec, row_scales, codes, protected, low_rank })
    }

    /// The same codes beside `part`, in place of a low-rank part that there was.
    ///
    /// # Errors
    /// [`FormatError`] for a rank that the weight cannot have, and a number that is not finite or, in units of the weight's
    /// power of two, beyond F16.
    ///
    /// # Panics
    /// If the part has another shape.
    pub fn with_low_rank(mut self, part: &LowRank, storage: FactorStorage) -> Result<Self, FormatError> {
        assert_eq!(part.shape(), self.shape(), "shapes of the low-rank part and the weight");
        let spec = LowRankSpec { rank: part.rank(), storage };
        spec.check(self.shape())?;
        self.header.low_rank = Some(spec);
        self.low_rank = Some(LowRankFactors::round(part, self.header.exponent, storage)?);
        Ok(self)
    }

    /// Shape, codec, rotation, exponent, and what is stored beside the codes.
    pub const fn header(&self) -> &PackedHeader {
        &self.header
    }

    /// The shape of the weight.
    pub const fn shape(&self) -> Shape {
        self.header.shape
    }

    /// The codec, built.
    pub fn codec(&self) -> &dyn Codec {
        &*self.codec
    }

    /// The codes.
    pub const fn codes(&self) -> &Codes {
        &self.codes
    }

    /// One factor a row; empty where the codec has scales of its own.
    pub fn row_scales(&self) -> &[f16] {
        &self.row_scales
    }

    /// The columns stored beside the codes.
    pub const fn protected(&self) -> &ProtectedColumns {
        &self.protected
    }

    /// The low-rank part beside the codes as it is stored, if there is one.
    pub const fn low_rank(&self) -> Option<&LowRankFactors> {
        self.low_rank.as_ref()
    }

    /// The low-rank part as a matrix product, in the basis of the rotation.
    pub fn low_rank_part(&self) -> Option<LowRank> {
        self.low_rank.as_ref().map(|factors| factors.decode(self.header.exponent))
    }

    /// The streams with their specifications, in the order of [`stored_streams`].
    pub fn streams(&self) -> impl Iterator<Item = (StreamSpec, StreamBytes<'_>)> {
        let low_rank = self.low_rank.iter().flat_map(LowRankFactors::stream_bytes);
        let codes = self.codes.streams.iter().map(StreamBytes::of);
        let scales = (!self.row_scales.is_empty()).then_some(StreamBytes::Halves(&self.row_scales));
        let protected = [StreamBytes::Words(self.protected.columns()), StreamBytes::Halves(self.protected.values())];
        let protected = protected.into_iter().filter(|_| !self.protected.is_empty());
        self.specs().into_iter().zip(codes.chain(scales).chain(protected).chain(low_rank))
    }

    fn specs(&self) -> Vec<StreamSpec> {
        stream_specs(&*self.codec, self.header.shape, self.header.protected, self.header.low_rank)
    }

    /// Bytes of all streams.
    pub fn num_bytes(&self) -> usize {
        self.specs().iter().map(StreamSpec::num_bytes).sum()
    }

    /// Bits per weight of all streams: indices, scales, learned patterns, protected columns, low-rank
    /// factors, padding.
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.num_bytes() as u64, self.shape().num_weights() as u64)
    }
}

/// The values of a stream, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StreamBytes<'a> {
    /// Packed indices.
    Words(&'a [u32]),
    /// Scales or patterns.
    Halves(&'a [f16]),
    /// A low-rank factor.
    Bytes(&'a [i8]),
}

impl<'a> StreamBytes<'a> {
    pub(crate) fn of(stream: &'a Stream) -> Self {
        match stream {
            Stream::U32(words) => Self::Words(words),
            Stream::F16(halves) => Self::Halves(halves),
            Stream::I8(bytes) => Self::Bytes(bytes),
        }
    }

    /// The values as little-endian bytes.
    pub fn to_le_bytes(self) -> Cow<'a, [u8]> {
        match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytemuck::cast_slice(bytes)),
            Self::Words(words) if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(words)),
            Self::Halves(halves) if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(halves)),
            Self::Words(words) => words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            Self::Halves(halves) => halves.iter().flat_map(|h| h.to_le_bytes()).collect(),
        }
    }
}

/// Everything that is stored for a weight of `shape` under `spec` with nothing beside the codes: the codec's
/// streams, then the row scales if there are any.
///
/// # Errors
/// [`crate::ConfigError`] if the codec cannot be built.
pub fn spec_streams(spec: &CodecSpec, shape: Shape) -> Result<Vec<StreamSpec>, crate::ConfigError> {
    stored_streams(spec, shape, 0, None)
}

/// [`spec_streams`], then numbers and values of `protected` columns and the factors of a low-rank part, if any.
///
/// # Errors
/// [`crate::ConfigError`] if the codec cannot be built, the weight has no column beside those protected, or it cannot have
/// the rank.
pub fn stored_streams(
    spec: &CodecSpec,
    shape: Shape,
    protected: usize,
    low_rank: Option<LowRankSpec>,
) -> Result<Vec<StreamSpec>, crate::ConfigError> {
    check_count("protected", protected, shape.d_input())?;
    low_rank.map_or(Ok(()), |low_rank| low_rank.check(shape))?;
    Ok(stream_specs(&*spec.build()?, shape, protected, low_rank))
}

pub(crate) fn stream_specs(
    codec: &dyn Codec,
    shape: Shape,
    protected: usize,
    low_rank: Option<LowRankSpec>,
) -> Vec<StreamSpec> {
    let mut specs = codec.streams(shape);
    if codec.row_scaling() != codec::RowScaling::None {
        specs.push(StreamSpec { name: ROW_SCALES, dtype: StreamType::F16, shape: vec![shape.d_output()] });
    }
    specs.extend(protected::streams(shape, protected));
    specs.extend(low_rank::streams(shape, low_rank));
    specs
}

fn check_streams(specs: &[StreamSpec], streams: &[Stream]) -> Result<(), FormatError> {
    for (i, spec) in specs.iter().enumerate() {
        let stream = streams.get(i).ok_or(FormatError::MissingStream { stream: spec.name })?;
        if stream.dtype() != spec.dtype || stream.len() != spec.len() {
            return Err(FormatError::StreamShape {
                stream: spec.name,
                found: format!("{} values of {:?}", stream.len(), stream.dtype()),
                expected: format!("{} values of {:?}", spec.len(), spec.dtype),
            });
        }
    }
    if streams.len() > specs.len() {
        return Err(FormatError::Field {
            field: "streams",
            value: streams.len().to_string(),
            range: format!("{} streams", specs.len()),
        });
    }
    Ok(())
}
