//! What a plan does otherwise than its recipe may have meant.

use super::checkpoint::PlanItem;
use super::decision::{CompiledRecipe, Decision, KeepReason, Omission};
use super::roles::Role;
use crate::archive::some_of;
use std::collections::BTreeMap;

/// Something that the writer of a recipe should know. Its text is one line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remark {
    /// An expression that matches no tensor: a typing error, or names of another family.
    Unmatched {
        /// Where it stands, such as `rule 1`.
        place: String,
        /// The expression.
        expression: String,
    },
    /// A rule that applies to none of the tensors it matches, since others come first.
    Shadowed {
        /// Where it stands.
        place: String,
        /// The expression.
        expression: String,
        /// How many tensors it matches.
        tensors: usize,
    },
    /// Tensors that a rule names, and that are kept for their role all the same.
    KeptForRole {
        /// Where the rule stands.
        place: String,
        /// Its expression.
        expression: String,
        /// The tensors.
        names: Vec<String>,
    },
    /// Tensors too small for a part of what is asked for.
    Omitted {
        /// The part.
        part: Omission,
        /// The tensors.
        names: Vec<String>,
    },
    /// Matrices that are coded as layers for no more than the end of their names.
    UnknownLayers {
        /// The tensors.
        names: Vec<String>,
    },
}

impl std::fmt::Display for Remark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unmatched { place, expression } => write!(f, "{place} '{expression}' matches no tensor"),
            Self::Shadowed { place, expression, tensors } => {
                write!(f, "{place} '{expression}' never applies: rules before it match its {tensors} tensor(s) too")
            }
            Self::KeptForRole { place, expression, names } => {
                let names = some_of(names);
                write!(f, "{place} '{expression}' names {names}, kept for the role; keep = false has them coded")
            }
            Self::Omitted { part, names } => write!(f, "too small for {part}, done without: {}", some_of(names)),
            Self::UnknownLayers { names } => {
                write!(f, "coded as layers for the end of the name alone, see --exclude: {}", some_of(names))
            }
        }
    }
}

/// What is to be said of the plan `items`, made by `recipe`; `omitted` holds what was left out, and of which tensor.
pub(super) fn remarks(recipe: &CompiledRecipe, items: &[PlanItem], omitted: Vec<(Omission, String)>) -> Vec<Remark> {
    let mut remarks = Vec::new();
    for (place, expression) in recipe.expressions() {
        let matched = || items.iter().filter(|item| expression.is_match(&item.name));
        if matched().next().is_none() {
            remarks.push(Remark::Unmatched { place, expression: expression.to_string() });
        }
    }
    for (place, expression, index) in recipe.rule_expressions() {
        let matched = || items.iter().filter(|item| expression.is_match(&item.name));
        let own = || matched().filter(|item| recipe.rule_index(&item.name) == Some(index));
        let (tensors, expression) = (matched().count(), expression.to_string());
        let kept = own().filter(|item| item.decision == Decision::Keep(KeepReason::Role));
        let names: Vec<String> = kept.map(|item| item.name.clone()).collect();
        if tensors > 0 && own().next().is_none() {
            remarks.push(Remark::Shadowed { place, expression, tensors });
        } else if !names.is_empty() && recipe.recipe().rules[index].treatment.names_codec() {
            remarks.push(Remark::KeptForRole { place, expression, names });
        }
    }
    let mut parts: BTreeMap<Omission, Vec<String>> = BTreeMap::new();
    for (part, name) in omitted {
        parts.entry(part).or_default().push(name);
    }
    remarks.extend(parts.into_iter().map(|(part, names)| Remark::Omitted { part, names }));
    let unknown = |item: &&PlanItem| item.role == Role::UnknownLayer && item.decision.coding().is_some();
    let names: Vec<String> = items.iter().filter(unknown).map(|item| item.name.clone()).collect();
    if !names.is_empty() {
        remarks.push(Remark::UnknownLayers { names });
    }
    remarks
}
