//! The options of commands that run a model, and how they load one.

use crate::output;
use anyhow::{Context, Result, anyhow, ensure};
use burn::tensor::Device;
use clap::{ValueEnum, value_parser};
use pixel_core::archive::Checkpoint;
use pixel_core::backend::probe_device;
use pixel_models::tokenizer::TextTokenizer;
use pixel_models::{LoadOptions, LoadedModel, UnreadTensor, load};
use pixel_nn::SynthesisMode;
use pixel_nn::attention::CacheFormat;
use std::path::Path;

/// Tensors that a warning names.
const NAMED: usize = 3;

/// Where models run.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ModelArgs {
    /// What the model runs on; all but flex have to be compiled in, by the cargo feature of the same name
    #[arg(long, value_enum, default_value_t = Backend::Flex)]
    backend: Backend,
    /// What products with packed weights compute with on a processor
    #[arg(long, value_enum, default_value_t = Arithmetic::Integer)]
    arithmetic: Arithmetic,
    /// Threads, 1024 at most; 0 for RAYON_NUM_THREADS, or one a processor
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u16).range(..=1024))]
    threads: u16,
    /// Take the contents of an archive without checking their hashes: `pixel verify` has done it
    #[arg(long)]
    skip_hashes: bool,
}

/// How language models hold the keys and values of what they have read.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct CacheArgs {
    /// Bits of a number in the cache of keys and values: 32 as it is, 8 or 4 rotated and rounded
    #[arg(long, value_name = "BITS", value_parser = parse_format, default_value = "32")]
    pub(crate) cache_bits: CacheFormat,
}

fn parse_format(bits: &str) -> Result<CacheFormat, String> {
    match bits {
        "32" => Ok(CacheFormat::F32),
        "8" => Ok(CacheFormat::Bits8),
        "4" => Ok(CacheFormat::Bits4),
        _ => Err("32, 8 and 4 are possible".into()),
    }
}

/// The numbers of products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arithmetic {
    /// Activations, or tables of partial products, rounded to 16 bits: the fastest
    Integer,
    /// Everything in f32
    F32,
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

    /// How a model is loaded whose weights are read from their codes.
    pub(crate) fn options(self) -> LoadOptions {
        let options = LoadOptions::default().with_hash_checks(!self.skip_hashes);
        options.with_synthesis(match self.arithmetic {
            Arithmetic::Integer => SynthesisMode::OnDemand,
            Arithmetic::F32 => SynthesisMode::OnDemandF32,
        })
    }

    /// Gives rayon, and with it every product, as many threads as were asked for.
    fn start_threads(self) -> Result<()> {
        let wanted = usize::from(self.threads);
        if wanted > 0 {
            // Refused for a second model; the threads are there then.
            let started = rayon::ThreadPoolBuilder::new().num_threads(wanted).build_global();
            let has = rayon::current_num_threads();
            ensure!(has == wanted, "--threads {wanted}: {has} threads run, {started:?}");
        }
        Ok(())
    }

    /// Loads a model, to be run from its codes.
    pub(crate) fn load(self, path: &Path) -> Result<LoadedModel> {
        self.load_with(path, &self.options())
    }

    /// Loads a model that others are held against: everything in f32.
    pub(crate) fn load_reference(self, path: &Path) -> Result<LoadedModel> {
        self.load_with(path, &self.options().with_synthesis(SynthesisMode::OnDemandF32))
    }

    /// Loads a model as `options` say.
    pub(crate) fn load_with(self, path: &Path, options: &LoadOptions) -> Result<LoadedModel> {
        self.start_threads()?;
        let model = load(path, options, &self.device()?)?;
        // It has been opened once; what is read again are the headers.
        output::remarks(&Checkpoint::open(path)?);
        if let Some(warning) = unread(path, &model.unread()) {
            eprintln!("{warning}");
        }
        Ok(model)
    }
}

/// What there is to say of tensors that a model does not read: how many, some by name, and why as far as it is known.
fn unread(path: &Path, tensors: &[UnreadTensor]) -> Option<String> {
    let some: Vec<&str> = tensors.iter().take(NAMED).map(|tensor| tensor.name.as_str()).collect();
    let (names, path) = (some.join(", "), path.display());
    let more = if tensors.len() > NAMED { ", …" } else { "" };
    let mut reasons: Vec<String> = Vec::new();
    for reason in tensors.iter().filter_map(|tensor| tensor.reason).map(|reason| reason.to_string()) {
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    }
    let why = if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) };
    let (count, noun) = (tensors.len(), if tensors.len() == 1 { "tensor is" } else { "tensors are" });
    (count > 0).then(|| format!("warning: {path}: {count} {noun} not read ({names}{more}){why}"))
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
