//! Codes as a part of a module, under a name that says how they are read.

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param, ParamId,
};
use burn::tensor::{Device, Int, Tensor};
use pixel_core::{ConfigError, PackedHeader};
use std::sync::Arc;

/// What visitors are told of the container of [`Codes`].
pub(crate) const CODES: &str = "Codes";

/// Words of codes. In a record their path ends with the [fingerprint](PackedHeader::fingerprint) of the weight, so that
/// codes which another weight would read otherwise are missing there: Burn refuses the record and names the path.
#[derive(Debug, Clone)]
pub(crate) struct Codes {
    words: Param<Tensor<1, Int>>,
    fingerprint: Arc<str>,
}

impl Codes {
    /// `words` as a weight with this header reads them.
    ///
    /// # Errors
    /// [`ConfigError`] if the codec or one of its options is not known.
    pub(crate) fn new(words: Tensor<1, Int>, header: &PackedHeader) -> Result<Self, ConfigError> {
        // A dot would begin another module.
        let fingerprint = header.fingerprint()?.replace('.', ",").into();
        Ok(Self { words: Param::initialized(ParamId::new(), words), fingerprint })
    }

    /// The words.
    pub(crate) const fn words(&self) -> &Param<Tensor<1, Int>> {
        &self.words
    }

    fn map_words(self, change: impl FnOnce(Param<Tensor<1, Int>>) -> Param<Tensor<1, Int>>) -> Self {
        Self { words: change(self.words), fingerprint: self.fingerprint }
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
        visitor.enter_module(&self.fingerprint, CODES);
        self.words.visit(visitor);
        visitor.exit_module(&self.fingerprint, CODES);
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let Self { words, fingerprint } = self;
        mapper.enter_module(&fingerprint, CODES);
        let words = Module::map(words, mapper);
        mapper.exit_module(&fingerprint, CODES);
        Self { words, fingerprint }
    }
}

impl ModuleDisplayDefault for Codes {
    fn content(&self, content: Content) -> Option<Content> {
        self.words.content(content)
    }
}

impl ModuleDisplay for Codes {}
