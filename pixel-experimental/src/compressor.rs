//! [`SVDHybridCompressor`]: the original's class, with its parameters and its result.

use crate::fit::{Fit, check_moments, fit, protected_columns};
use crate::rank::{Verdict, auto_rank, energy, rank_by_budget, rank_by_energy};
use crate::svd::{FaerSvd, SvdSolver};
use pixel_core::compressor::CompressError;
use pixel_core::{
    CodecSpec, CodingSpec, ConfigError, Encoder, FactorStorage, FeedbackOptions, LowRankSpec, Matrix, Moments,
    NumberRange, Outcome, PackedWeight, WeightError,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How the rank is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RankChoice {
    /// That which beats the same bits spent on patterns, or none: [`auto_rank`].
    Auto,
    /// The smallest whose directions hold this fraction of the weight's energy, 0 to 1: the original's
    /// `svd_energy_threshold`, .85 there. A rank of half the shorter side costs as much as the weight in 8 bits.
    Energy(f64),
    /// The largest that adds at most this many bits a weight.
    Budget(f64),
    /// This one; the shorter side of the weight if that is smaller.
    Fixed(usize),
    /// None: patterns alone.
    Never,
}

/// How the rate of the patterns is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RateChoice {
    /// That of the codec.
    Codec,
    /// The smallest of the codec's rates with which `‖W − Ŵ‖/‖W‖` is at most this, or the largest rate: the original's
    /// `pattern_error_threshold`, .05 there.
    Error(f64),
}

/// Compresses weights into a low-rank part and patterns.
///
/// The original's thresholds are [`RankChoice::Energy`] and [`RateChoice::Error`]:
/// [`with_thresholds`](Self::with_thresholds). By default the rank is chosen so that it pays.
#[derive(Debug, Clone)]
pub struct SVDHybridCompressor {
    /// How the rank is chosen. Default: [`RankChoice::Auto`].
    pub rank: RankChoice,
    /// How the patterns' rate is chosen. Default: [`RateChoice::Codec`].
    pub rate: RateChoice,
    /// The codec of the patterns. Default: `lapped:2`.
    pub codec: CodecSpec,
    /// How the factors are stored. Default: 8 bits.
    pub storage: FactorStorage,
    /// Rounds of fitting factors and codes to one another, beyond the first; see [`fit`]. Default: 1.
    pub rounds: usize,
    /// The seed of the rotation's signs, if the weight is rotated. Default: 0.
    pub rotation: Option<u64>,
    /// Columns that are stored in F16 in place of codes. Default: 0.
    pub protect: usize,
    /// How errors are fed back where moments are given; `None` only measures them. Default: the default options.
    pub feedback: Option<FeedbackOptions>,
    /// Who decomposes. Default: [`FaerSvd`].
    pub solver: Arc<dyn SvdSolver>,
}

impl Default for SVDHybridCompressor {
    fn default() -> Self {
        Self {
            rank: RankChoice::Auto,
            rate: RateChoice::Codec,
            codec: CodecSpec::new(pixel_core::codec::DEFAULT, 2.0),
            storage: FactorStorage::default(),
            rounds: 1,
            rotation: Some(0),
            protect: 0,
            feedback: Some(FeedbackOptions::DEFAULT),
            solver: Arc::new(FaerSvd),
        }
    }
}

/// A compressed weight, in the original's terms.
#[derive(Debug)]
pub struct HybridWeight {
    /// The weight.
    pub packed: PackedWeight,
    /// The rank of its low-rank part; 0 if it has none.
    pub svd_rank: usize,
    /// Pattern indices stored.
    pub num_patterns: usize,
    /// Bytes of the weight as F32 over bytes stored.
    pub compression_ratio: f64,
    /// `‖W − Ŵ‖/‖W‖`.
    pub reconstruction_error: f64,
    /// `tr((W−Ŵ)·H·(W−Ŵ)ᵀ)/tr(W·H·Wᵀ)`, where moments were given.
    pub output_loss: Option<f64>,
    /// Where the bytes are.
    pub size_breakdown: SizeBreakdown,
    /// What [`RankChoice::Auto`] found out.
    pub verdict: Option<Verdict>,
}

/// Bytes of a compressed weight, part by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SizeBreakdown {
    /// The factors of the low-rank part, scales counted.
    pub factors: usize,
    /// Pattern indices.
    pub indices: usize,
    /// Scales and learned patterns.
    pub scales: usize,
    /// Protected columns.
    pub protected: usize,
}

impl SizeBreakdown {
    fn of(packed: &PackedWeight) -> Self {
        let mut sizes = Self::default();
        for (spec, _) in packed.streams() {
            let part = match spec.name {
                name if name.starts_with("low_rank") => &mut sizes.factors,
                name if name.starts_with("protected") => &mut sizes.protected,
                "codes" => &mut sizes.indices,
                _ => &mut sizes.scales,
            };
            *part += spec.num_bytes();
        }
        sizes
    }

    /// All of it.
    pub const fn total(&self) -> usize {
        self.factors + self.indices + self.scales + self.protected
    }
}

impl SVDHybridCompressor {
    /// The original's parameters: all directions up to `svd_energy_threshold` of the energy go into the low-rank part,
    /// and patterns of what that leaves until the relative error is at most `pattern_error_threshold`. It had .85 and
    /// .05.
    ///
    /// A full spectrum needs many directions for .85; this then costs more than patterns alone, and
    /// [`RankChoice::Auto`], the default, would say so.
    pub fn with_thresholds(svd_energy_threshold: f64, pattern_error_threshold: f64) -> Self {
        Self {
            rank: RankChoice::Energy(svd_energy_threshold),
            rate: RateChoice::Error(pattern_error_threshold),
            ..Self::default()
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self.rank {
            RankChoice::Energy(energy) => ConfigError::range("svd_energy_threshold", energy, 0.0..=1.0)?,
            RankChoice::Budget(bits) => ConfigError::range("budget", bits, 0.0..)?,
            RankChoice::Fixed(rank) => ConfigError::range("rank", rank, 1usize..)?,
            RankChoice::Auto | RankChoice::Never => {}
        }
        if let RateChoice::Error(error) = self.rate {
            ConfigError::range("pattern_error_threshold", error, NumberRange::above(0.0, f64::INFINITY))?;
        }
        self.feedback.map_or(Ok(()), |feedback| feedback.check())?;
        self.codec.build().map(|_| ())
    }

    /// Compresses one weight; `moments` are those of its inputs, if they are known.
    ///
    /// # Errors
    /// [`WeightError`] for a field out of its range, a weight that is not finite, moments of another width, or a
    /// decomposition that failed.
    pub fn compress(&self, weight: &Matrix, moments: Option<&Moments>) -> Result<HybridWeight, WeightError> {
        self.validate()?;
        check_moments(weight.shape(), moments)?;
        let (rank, verdict) = self.choose_rank(weight, moments)?;
        let rates = match self.rate {
            RateChoice::Codec => vec![self.codec.bits],
            // Options that forbid a rate leave it out; those of the codec's own rate have been checked.
            RateChoice::Error(_) => {
                let is_allowed = |bits: &f64| CodecSpec { bits: *bits, ..self.codec.clone() }.build().is_ok();
                self.codec.family()?.rates().iter().copied().filter(is_allowed).collect()
            }
        };
        let mut last = None;
        for bits in rates {
            let (packed, outcome) = self.compress_at(weight, moments, rank, bits)?;
            let found = HybridWeight {
                svd_rank: rank,
                num_patterns: packed.codec().num_indices(packed.shape()),
                compression_ratio: 4.0 * packed.shape().num_weights() as f64 / packed.num_bytes() as f64,
                reconstruction_error: outcome.weight.relative_mse().sqrt(),
                output_loss: outcome.output.map(|output| output.sums.relative_mse()),
                size_breakdown: SizeBreakdown::of(&packed),
                verdict,
                packed,
            };
            match self.rate {
                RateChoice::Error(threshold) if found.reconstruction_error > threshold => last = Some(found),
                _ => return Ok(found),
            }
        }
        Ok(last.expect("every codec has a rate"))
    }

    /// The weight back again.
    pub fn decompress(&self, weight: &HybridWeight) -> Matrix {
        weight.packed.synthesize()
    }

    /// Compresses the weights of a model, each with the rank that suits it, in parallel; `moments` by the names of the
    /// weights.
    ///
    /// # Errors
    /// [`CompressError::Tensor`] for the first weight in the order of the names that cannot be compressed.
    pub fn compress_model(
        &self,
        weights: &BTreeMap<String, Matrix>,
        moments: &BTreeMap<String, Moments>,
    ) -> Result<BTreeMap<String, HybridWeight>, CompressError> {
        use rayon::prelude::*;
        let compress = |(name, weight): (&String, &Matrix)| {
            let found = self.compress(weight, moments.get(name));
            let found = found.map_err(|source| CompressError::Tensor { tensor: name.clone(), source })?;
            Ok((name.clone(), found))
        };
        let found: Vec<Result<_, _>> = weights.par_iter().map(compress).collect();
        found.into_iter().collect()
    }

    fn choose_rank(&self, weight: &Matrix, moments: Option<&Moments>) -> Result<(usize, Option<Verdict>), WeightError> {
        let shape = weight.shape();
        Ok(match self.rank {
            RankChoice::Never => (0, None),
            RankChoice::Fixed(rank) => (rank.min(shape.d_output()).min(shape.d_input()), None),
            RankChoice::Budget(bits) => (rank_by_budget(shape, bits, self.storage), None),
            RankChoice::Energy(threshold) => {
                let columns = protected_columns(weight, &self.coding(0), moments);
                let weight = crate::dense::without_columns(weight.clone(), &columns);
                (if energy(&weight) == 0.0 { 0 } else { rank_by_energy(&weight, threshold, &*self.solver)? }, None)
            }
            RankChoice::Auto => {
                let verdict = auto_rank(weight, &self.coding(1), moments, self.rounds, &*self.solver)?;
                (verdict.rank, Some(verdict))
            }
        })
    }

    /// The request for a weight with a part of `rank`, none if that is 0.
    fn coding(&self, rank: usize) -> CodingSpec {
        let low_rank = LowRankSpec { rank, storage: self.storage };
        CodingSpec::new(self.codec.clone())
            .with_rotation(self.rotation)
            .with_protect(self.protect)
            .with_low_rank(Some(low_rank).filter(|_| rank > 0))
            .with_feedback(self.feedback)
    }

    fn compress_at(
        &self,
        weight: &Matrix,
        moments: Option<&Moments>,
        rank: usize,
        bits: f64,
    ) -> Result<(PackedWeight, Outcome), WeightError> {
        let spec = self.coding(rank).with_bits(bits);
        if rank == 0 {
            return Encoder::new(&spec).with_moments(moments.cloned()).encode(weight.clone());
        }
        let Fit { packed, outcome, .. } = fit(weight, &spec, moments, self.rounds, &*self.solver)?;
        Ok((packed, outcome))
    }
}
