//! The options of commands that run a model, and how they load one.

use anyhow::{Context, Result, anyhow};
use burn::tensor::Device;
use clap::ValueEnum;
use pixel_core::backend::probe_device;
use pixel_models::tokenizer::TextTokenizer;
use pixel_models::{LoadOptions, LoadedModel, load};
use pixel_nn::{SynthesisMode, WeightCache};
use std::path::Path;

/// Where models run.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ModelArgs {
    /// What the model runs on; all but flex have to be compiled in, by the cargo feature of the same name
    #[arg(long, value_enum, default_value_t = Backend::Flex)]
    backend: Backend,
}

/// A backend of Burn's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// The processor
    Flex,
    /// The processor, through the crate ndarray
    Ndarray,
    /// A graphics card through Vulkan, Metal or DirectX
    Wgpu,
    /// A card of NVIDIA's
    Cuda,
}

impl ModelArgs {
    /// The device, which a first operation has shown to work.
    pub(crate) fn device(self) -> Result<Device> {
        let device = self.backend.device().with_context(|| self.backend.missing())?;
        probe_device(&device).with_context(|| format!("the backend {} does not work here", self.backend.name()))?;
        Ok(device)
    }

    /// Loads a model. Packed weights are decoded when they are first used, and their dense copies are kept.
    pub(crate) fn load(self, path: &Path) -> Result<LoadedModel> {
        self.load_with_cache(path, usize::MAX)
    }

    /// Loads a model with room for `bytes` of dense copies of packed weights; what does not fit is decoded as it is
    /// used.
    pub(crate) fn load_with_cache(self, path: &Path, bytes: usize) -> Result<LoadedModel> {
        let synthesis = match bytes {
            0 => SynthesisMode::OnDemand,
            bytes => SynthesisMode::Cached(WeightCache::new(bytes)),
        };
        Ok(load(path, &LoadOptions::default().with_synthesis(synthesis), &self.device()?)?)
    }
}

impl Backend {
    /// The name of the option's value, and of the cargo feature.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The device, if the backend is compiled in.
    fn device(self) -> Option<Device> {
        match self {
            Self::Flex => Some(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated, reason = "Burn advises Flex, but still ships and tests this backend")]
            Self::Ndarray => Some(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => Some(Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
            #[cfg(feature = "cuda")]
            Self::Cuda => Some(Device::cuda(0)),
            #[allow(unreachable_patterns, reason = "with every feature there is none")]
            _ => None,
        }
    }

    fn missing(self) -> String {
        let here = Self::value_variants().iter().filter(|backend| backend.device().is_some());
        let here = here.map(|backend| backend.name()).collect::<Vec<_>>().join(", ");
        let name = self.name();
        format!("the backend {name} is not compiled in (there are: {here}); build pixel with --features {name}")
    }
}

/// The tokenizer of a model, which a text cannot be read without.
pub(crate) fn tokenizer<'a>(tokenizer: Option<&'a TextTokenizer>, path: &Path) -> Result<&'a TextTokenizer> {
    tokenizer.ok_or_else(|| anyhow!("{}: there is no tokenizer.json next to the weights", path.display()))
}
