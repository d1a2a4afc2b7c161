//! What PIXEL tries out: **no promise of stability**. What proves itself here moves into `pixel-core`.
//!
//! At present that is the SVD hybrid: a weight as a matrix of low rank and patterns of what that leaves,
//!
//! ```text
//! W  ≈  U·Σ·Vᵀ  +  patterns(W − U·Σ·Vᵀ)
//! ```
//!
//! Factors in 8 bits cost `8.125·r·(m + n)` bits. Bits given to the codec instead divide its error by four for each bit
//! a weight, so rank `r` pays where it leaves less than `4^(−Δ)` of the error, `Δ` the bits that it adds. Rotated
//! weights with error feedback seldom have so much in a few directions: the hybrid wins on weights with a spike in
//! their spectrum or a few large columns, and without feedback; [`auto_rank`] finds out which, and measures before it
//! says yes.
//!
//! ```text
//! weight ─▶ auto_rank ─▶ rank ─▶ fit ─▶ factors + patterns   (one weight: SVDHybridCompressor)
//!            spectrum             SVD ⇄ codes, best kept
//! checkpoint ─▶ choose_ranks ─▶ recipe ─▶ pixel_core::compressor, with HybridFitter   (a model)
//! ```
//!
//! # Example
//! ```
//! use pixel_core::{Matrix, Shape};
//! use pixel_experimental::{RankChoice, SVDHybridCompressor};
//! // Rank one, and a little of everything else.
//! let noise = |i: usize| (i * 7919 % 1009) as f32 / 1e3;
//! let value = |i: usize| ((i / 64 * 7 % 13) as f32 - 6.0) * ((i % 64 * 5 % 11) as f32 - 5.0) + noise(i);
//! let weight = Matrix::new(Shape::new(64, 64)?, (0..64 * 64).map(value).collect())?;
//! let hybrid = SVDHybridCompressor { codec: "trellis:2:window=10".parse()?, ..Default::default() };
//! let found = hybrid.compress(&weight, None)?;
//! assert!(found.svd_rank > 0);
//! let patterns = SVDHybridCompressor { rank: RankChoice::Never, ..hybrid }.compress(&weight, None)?;
//! assert!(found.reconstruction_error < 0.1 * patterns.reconstruction_error);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs)]

mod compressor;
mod dense;
mod fit;
mod model;
mod preset;
mod rank;
pub mod svd;

pub use compressor::{HybridWeight, RankChoice, RateChoice, SVDHybridCompressor, SizeBreakdown};
pub use fit::{Fit, FitStep, HybridFitter, fit};
pub use model::{RankRequest, RankedTensor, Ranks, choose_ranks, search_memory};
pub use preset::{LayerKind, Preset};
pub use rank::{Verdict, auto_rank, break_even, rank_by_budget, rank_by_energy};
