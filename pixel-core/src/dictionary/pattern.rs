//! What a pattern is called and what is known about it.

use crate::matrix::Shape;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of a pattern within its dictionary; never used again, even after the pattern has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PatternId(pub u64);

impl std::fmt::Display for PatternId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Where a pattern comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum PatternKind {
    /// The main diagonal.
    Identity,
    /// A diagonal beside the main one.
    Diagonal,
    /// A block of ones.
    Block,
    /// A wave.
    Fourier,
    /// Drawn or computed at random.
    Random,
    /// Learned from tiles.
    Learned,
    /// The leading singular pair of a residual.
    Svd,
}

/// What a dictionary knows about a pattern.
#[derive(Debug, Clone, PartialEq)]
pub struct PatternMetadata {
    /// Where it comes from.
    pub kind: PatternKind,
    /// Its shape.
    pub shape: Shape,
    /// How often it was fetched or used by a layer.
    pub usage: u64,
    /// The caller's weight; among equally used patterns the least important one is evicted first.
    pub importance: f32,
    /// References that hold it; while there is one it cannot be evicted.
    pub references: u64,
    /// Uses by layer.
    pub layers: BTreeMap<String, u64>,
}
