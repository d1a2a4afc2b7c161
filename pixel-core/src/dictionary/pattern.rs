//! What a pattern is called and what is known about it.

use crate::matrix::Shape;
use crate::patterns::PatternKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The name of a pattern within its dictionary; never used again, even after the pattern is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PatternId(pub u64);

impl std::fmt::Display for PatternId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "#{}", self.0)
    }
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
