//! [`PackedWeight`]: a weight as codes and scales, ready to be stored or synthesised. Holding one proves it valid.

use crate::codec::{
    Codec, CodecSpec, Codes, RowScaling, Stream, StreamBytes, StreamSpec, StreamType, check_finite, check_streams,
};
use crate::encode::{
    FactorStorage, LowRank, LowRankFactors, LowRankSpec, ProtectedColumns, check_protect, low_rank_streams,
    protected_streams,
};
use crate::error::{ConfigError, FormatError};
use crate::math::Exponent;
use crate::math::metrics::bits_per_weight;
use crate::matrix::Shape;
use half::f16;

/// The name of the stream of row scales, for codecs that store no scales themselves.
pub(crate) const ROW_SCALES: &str = "scales";

/// The description of a packed weight, without its streams. [`CodingSpec::header`](crate::CodingSpec::header) derives
/// it from a request.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedHeader {
    /// The shape of the weight.
    pub shape: Shape,
    /// The codec.
    pub codec: CodecSpec,
    /// The seed of the rotation's signs, if the weight was rotated.
    pub rotation: Option<u64>,
    /// The power of two by which everything is multiplied.
    pub exponent: Exponent,
    /// How many columns are protected: stored in F16 in place of codes.
    pub protected: usize,
    /// Rank and storage of the low-rank part in addition to the codes, if there is one.
    pub low_rank: Option<LowRankSpec>,
}

impl PackedHeader {
    /// Everything that is stored, in order: the codec's streams, the row scales if there are any, numbers and values of
    /// protected columns, and the factors of the low-rank part.
    ///
    /// # Errors
    /// [`ConfigError`] if the codec cannot be built, every column is protected, or the weight cannot have the rank.
    pub fn streams(&self) -> Result<Vec<StreamSpec>, ConfigError> {
        let codec = self.codec.build()?;
        self.check_parts()?;
        Ok(self.streams_of(&*codec))
    }

    /// All that the meaning of codes and scales depends on, in words, for records that hold tensors alone: shape, codec
    /// with the options of decoding, and rotation. Protected columns and the low-rank part have tensors of their own.
    ///
    /// # Errors
    /// [`ConfigError`] for an unknown codec or option, or an option outside its range.
    pub fn fingerprint(&self) -> Result<String, ConfigError> {
        let [rows, columns] = <[usize; 2]>::from(self.shape);
        let rotation = self.rotation.map_or("no rotation".to_owned(), |seed| format!("rotation {seed}"));
        Ok(format!("{rows}x{columns} {} {rotation}", self.codec.decoding()?))
    }

    /// Refuses parts that the shape does not allow.
    fn check_parts(&self) -> Result<(), ConfigError> {
        check_protect(self.protected, self.shape.d_input())?;
        self.low_rank.map_or(Ok(()), |low_rank| low_rank.check(self.shape))
    }

    /// [`streams`](Self::streams) with the codec built.
    pub(crate) fn streams_of(&self, codec: &dyn Codec) -> Vec<StreamSpec> {
        let mut specs = codec.streams(self.shape);
        if codec.row_scaling() != RowScaling::None {
            specs.push(StreamSpec { name: ROW_SCALES, dtype: StreamType::F16, shape: vec![self.shape.d_output()] });
        }
        specs.extend(protected_streams(self.shape, self.protected));
        specs.extend(low_rank_streams(self.shape, self.low_rank));
        specs
    }
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
    /// Puts a weight together from the streams that [`PackedHeader::streams`] announces, in that order.
    ///
    /// # Errors
    /// [`FormatError`] if the streams do not fit the header or hold what no decoder could use.
    pub fn new(header: PackedHeader, mut streams: Vec<Stream>) -> Result<Self, FormatError> {
        let codec = header.codec.build()?;
        header.check_parts()?;
        let specs = header.streams_of(&*codec);
        check_streams(&specs, &streams)?;
        let low_rank = match header.low_rank {
            None => None,
            Some(spec) => {
                let own = streams.split_off(specs.len() - low_rank_streams(header.shape, Some(spec)).len());
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
            RowScaling::None => Vec::new(),
            RowScaling::RootMeanSquare(_) => match streams.pop() {
                Some(Stream::F16(scales)) => scales,
                _ => unreachable!("the last stream is the row scales, of type F16"),
            },
        };
        check_finite(ROW_SCALES, &row_scales)?;
        let codes = Codes { streams };
        codec.check(header.shape, &codes)?;
        Ok(Self { header, codec, row_scales, codes, protected, low_rank })
    }

    /// The same codes with `part` as the low-rank part, in place of an earlier one.
    ///
    /// # Errors
    /// [`FormatError`] for a rank that the weight cannot have, and a number that is not finite or, in units of the
    /// weight's power of two, beyond F16.
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

    /// Shape, codec, rotation, exponent, and what is stored in addition to the codes.
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

    /// The protected columns.
    pub const fn protected(&self) -> &ProtectedColumns {
        &self.protected
    }

    /// The low-rank part in addition to the codes, as it is stored, if there is one.
    pub const fn low_rank(&self) -> Option<&LowRankFactors> {
        self.low_rank.as_ref()
    }

    /// The low-rank part as a matrix product, in the basis of the rotation.
    pub fn low_rank_part(&self) -> Option<LowRank> {
        self.low_rank.as_ref().map(|factors| factors.decode(self.header.exponent))
    }

    /// The streams with their specifications, in the order of [`PackedHeader::streams`].
    pub fn streams(&self) -> impl Iterator<Item = (StreamSpec, StreamBytes<'_>)> {
        let low_rank = self.low_rank.iter().flat_map(LowRankFactors::stream_bytes);
        let codes = self.codes.streams.iter().map(StreamBytes::of);
        let scales = (!self.row_scales.is_empty()).then_some(StreamBytes::Halves(&self.row_scales));
        let protected = [StreamBytes::Words(self.protected.columns()), StreamBytes::Halves(self.protected.values())];
        let protected = protected.into_iter().filter(|_| !self.protected.is_empty());
        self.specs().into_iter().zip(codes.chain(scales).chain(protected).chain(low_rank))
    }

    fn specs(&self) -> Vec<StreamSpec> {
        self.header.streams_of(&*self.codec)
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
