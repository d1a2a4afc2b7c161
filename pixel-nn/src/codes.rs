//! Codes as a part of a module, under a name that says how they are read.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param, ParamId,
};
use burn::tensor::{Device, Int, Tensor};
use pixel_core::math::Exponent;
use pixel_core::{CodecSpec, ConfigError, LowRankSpec, PackedHeader, Shape};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What visitors are told of the container of [`Codes`].
pub(crate) const CODES: &str = "Codes";

/// What visitors are told of the container whose name is the header of [`Codes`], as JSON. Nothing is inside.
pub(crate) const HEADER: &str = "PatternHeader";

/// Words of codes. In a record their path ends with the [fingerprint](PackedHeader::fingerprint) of the weight, so that
/// codes which another weight would read otherwise are missing there: Burn refuses the record and names the path.
#[derive(Debug, Clone)]
pub(crate) struct Codes {
    words: Param<Tensor<1, Int>>,
    fingerprint: Arc<str>,
    /// The [`Header`], for visitors, who see parameters and names alone.
    header: Arc<str>,
}

/// What visitors are told of a weight.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Header {
    shape: [usize; 2],
    codec: CodecSpec,
    rotation: Option<u64>,
    exponent: i32,
    protected: usize,
    low_rank: Option<LowRankSpec>,
}

impl Header {
    fn of(header: &PackedHeader) -> Arc<str> {
        let PackedHeader { shape, codec, rotation, exponent, protected, low_rank } = header.clone();
        let exponent = exponent.get();
        let header = Self { shape: shape.into(), codec, rotation, exponent, protected, low_rank };
        serde_json::to_string(&header).expect("numbers and strings").into()
    }
}

/// The header that a visitor was told.
pub(crate) fn read_header(text: &str) -> Option<PackedHeader> {
    let Header { shape, codec, rotation, exponent, protected, low_rank } = serde_json::from_str(text).ok()?;
    let (shape, exponent) = (Shape::try_from(shape).ok()?, Exponent::new(exponent).ok()?);
    Some(PackedHeader { shape, codec, rotation, exponent, protected, low_rank })
}

/// The last step of the path of codes.
///
/// # Errors
/// [`ConfigError`] if the codec or one of its options is not known.
pub(crate) fn fingerprint(header: &PackedHeader) -> Result<String, ConfigError> {
    // A dot would begin another module.
    Ok(header.fingerprint()?.replace('.', ","))
}

/// The shape of the weight that a fingerprint is of.
pub(crate) fn shape_of(fingerprint: &str) -> Option<Shape> {
    let (d_output, d_input) = fingerprint.split(' ').next()?.split_once('x')?;
    Shape::new(d_output.parse().ok()?, d_input.parse().ok()?).ok()
}

impl Codes {
    /// `words` as a weight with this header reads them.
    ///
    /// # Errors
    /// [`ConfigError`] if the codec or one of its options is not known.
    pub(crate) fn new(words: Tensor<1, Int>, header: &PackedHeader) -> Result<Self, ConfigError> {
        let fingerprint = fingerprint(header)?.into();
        Ok(Self { words: Param::initialized(ParamId::new(), words), fingerprint, header: Header::of(header) })
    }

    /// The same codes of a weight with other parts beside them.
    pub(crate) fn with_header(self, header: &PackedHeader) -> Self {
        Self { header: Header::of(header), ..self }
    }

    /// The words.
    pub(crate) const fn words(&self) -> &Param<Tensor<1, Int>> {
        &self.words
    }

    fn map_words(self, change: impl FnOnce(Param<Tensor<1, Int>>) -> Param<Tensor<1, Int>>) -> Self {
        let Self { words, fingerprint, header } = self;
        Self { words: change(words), fingerprint, header }
    }
}

impl Module for Codes {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.words.collect_devices(devices)
    }

    fn fork(self, device: &Device) -> Self {
        self.map_words(|words| words.fork(device))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_words(|words| words.to_device(device))
    }

    fn train(self) -> Self {
        self.map_words(Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().map_words(|words| words.valid())
    }

    fn materialize(self) -> Self {
        self.map_words(Module::materialize)
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(&self.header, HEADER);
        visitor.exit_module(&self.header, HEADER);
        visitor.enter_module(&self.fingerprint, CODES);
        self.words.visit(visitor);
        visitor.exit_module(&self.fingerprint, CODES);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let Self { words, fingerprint, header } = self;
        mapper.enter_module(&fingerprint, CODES);
        let words = Module::map(words, mapper);
        mapper.exit_module(&fingerprint, CODES);
        Self { words, fingerprint, header }
    }
}

impl ModuleDisplayDefault for Codes {
    fn content(&self, content: Content) -> Option<Content> {
        self.words.content(content)
    }
}

impl ModuleDisplay for Codes {}
