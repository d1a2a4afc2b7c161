//! The values that options of `pixel compress` take, and what they mean to the libraries.

use pixel_core::FactorStorage;
use pixel_core::compressor::Scope;
use pixel_experimental::Preset;
use pixel_experimental::svd::{FaerSvd, SvdSolver};
use std::sync::Arc;

/// When weights are rotated.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Rotate {
    Auto,
    Always,
    Never,
}

/// What `--target-bits` is the mean of.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum TargetScope {
    /// The layers that are compressed
    Layers,
    /// Everything in the weight files: embeddings, tensors stored as they are, headers
    All,
}

impl From<TargetScope> for Scope {
    fn from(scope: TargetScope) -> Self {
        match scope {
            TargetScope::Layers => Self::Layers,
            TargetScope::All => Self::All,
        }
    }
}

/// What `--hybrid` asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Hybrid {
    Auto,
    Never,
    Rank(usize),
}

impl std::str::FromStr for Hybrid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            ("never" | "0", _) => Ok(Self::Never),
            (_, Ok(rank)) => Ok(Self::Rank(rank)),
            _ => Err(format!("{text} is neither auto nor never nor a rank")),
        }
    }
}

/// How factors are stored.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Factors {
    /// 8 bits with a scale for every 128
    Int8,
    /// Half precision
    F16,
}

impl From<Factors> for FactorStorage {
    fn from(factors: Factors) -> Self {
        match factors {
            Factors::Int8 => Self::Int8,
            Factors::F16 => Self::F16,
        }
    }
}

/// What decomposes weights.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Solver {
    /// All singular values, in Rust
    Faer,
    /// All singular values, by LAPACK
    #[cfg(feature = "lapack")]
    Lapack,
    /// The leading ones by random projections: faster for large weights
    #[cfg(feature = "models")]
    Randomized,
}

impl Solver {
    pub(super) fn build(self) -> Arc<dyn SvdSolver> {
        match self {
            Self::Faer => Arc::new(FaerSvd),
            #[cfg(feature = "lapack")]
            Self::Lapack => Arc::new(pixel_experimental::svd::LapackSvd),
            #[cfg(feature = "models")]
            Self::Randomized => Arc::new(pixel_experimental::svd::RandomizedSvd::new(&burn::tensor::Device::flex())),
        }
    }
}

/// A preset.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum PresetName {
    /// Layers at 4 bits
    HighQuality,
    /// About 3 bits: values and outputs of attentions more, queries and keys less
    Balanced,
    /// About 2 bits, embeddings at 4
    MaxCompression,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Self {
        match name {
            PresetName::HighQuality => Self::HighQuality,
            PresetName::Balanced => Self::Balanced,
            PresetName::MaxCompression => Self::MaxCompression,
        }
    }
}
