//! Where a walk over a module is: the names by which calibrations and archives know its parameters.

use crate::replace::ATTACHED;

/// The fields and containers on the way to a parameter.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    steps: Vec<(String, String)>,
}

/// What a parameter is to a calibration or an archive.
#[derive(Debug, PartialEq)]
pub(crate) enum Place {
    /// A tensor of its own.
    Tensor {
        /// Its name.
        name: String,
        /// Whether it is the weight of a `Linear`, of which archives hold the transpose.
        is_linear: bool,
    },
    /// A part of a weight that is patterns.
    Part {
        /// The name of the weight.
        weight: String,
        /// The path of the part in it.
        part: String,
        /// Whether the weight is attached to a dense parameter, which is a placeholder then.
        is_attached: bool,
    },
    /// A part of something else that is attached to a parameter.
    Foreign {
        /// The name of the parameter.
        parameter: String,
        /// What is attached.
        attached: String,
    },
}

impl Trail {
    pub(crate) fn enter(&mut self, name: &str, container: &str) {
        self.steps.push((name.into(), container.into()));
    }

    pub(crate) fn exit(&mut self) {
        self.steps.pop();
    }

    /// The place of the parameter that the walk is at.
    pub(crate) fn place(&self) -> Place {
        let of = |container: &str| self.steps.iter().position(|(_, found)| found == container);
        let (attached, weight) = (of(ATTACHED), of("Struct:PatternWeight"));
        match (attached, weight) {
            (attached, Some(part)) => Place::Part {
                weight: self.name(attached.unwrap_or(part)),
                part: joined(&self.steps[part..]),
                is_attached: attached.is_some(),
            },
            (Some(attached), None) => {
                Place::Foreign { parameter: self.name(attached), attached: self.steps[attached].0.clone() }
            }
            (None, None) => {
                let is_linear =
                    self.steps.last().is_some_and(|(name, container)| name == "weight" && container == "Struct:Linear");
                Place::Tensor { name: self.name(self.steps.len()), is_linear }
            }
        }
    }

    /// The path of the first `len` steps, without the variants of projections: they are no fields of the user's.
    fn name(&self, len: usize) -> String {
        joined(self.steps[..len].iter().filter(|(_, container)| container != "Enum:Projection"))
    }
}

fn joined<'a>(steps: impl IntoIterator<Item = &'a (String, String)>) -> String {
    steps.into_iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(".")
}
