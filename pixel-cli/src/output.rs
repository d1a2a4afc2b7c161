//! Tables, numbers and errors as the commands print them.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanBytes;
use pixel_core::WeightError;
use pixel_core::archive::{ArchiveError, Checkpoint};
#[cfg(feature = "models")]
use pixel_models::ModelError;
#[cfg(feature = "models")]
use pixel_nn::calibration::CalibrationError;

/// A table with `columns`; those after the first `text_columns` are aligned to the right.
pub(crate) fn table(columns: &[&str], text_columns: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.to_vec());
    for column in table.column_iter_mut().skip(text_columns) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// A size, exact and readable: `1234567 (1.18 MiB)`.
pub(crate) fn bytes(bytes: u64) -> String {
    format!("{bytes} ({})", HumanBytes(bytes))
}

/// A shape: `512×64`.
pub(crate) fn shape(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("×")
}

/// A relative error with three digits.
pub(crate) fn error(relative_mse: f64) -> String {
    match relative_mse {
        0.0 => "0".into(),
        e if e < 1e-3 => format!("{e:.2e}"),
        e => format!("{e:.4}"),
    }
}

/// An error with its causes, one after the other; a cause that the text before ends with already is not repeated.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        let cause = cause.trim_end();
        if text.ends_with(cause) {
            continue;
        }
        if !text.is_empty() {
            text += ": ";
        }
        text += cause;
    }
    if error.chain().any(is_output_in_the_way) {
        // Every command that writes has the option.
        text += "; --overwrite replaces it if PIXEL wrote it";
    }
    if let Some(tensor) = error.chain().find_map(tensor_that_is_not_finite) {
        text += &format!("; --exclude '^{}$' stores the tensor as it is", expression_for(tensor));
    }
    text
}

/// The tensor of an error of one that cannot be coded for a value in it.
fn tensor_that_is_not_finite<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a str> {
    match error.downcast_ref() {
        Some(ArchiveError::Weight { tensor, source, .. }) => {
            matches!(**source, WeightError::NotFinite { .. }).then_some(tensor.as_str())
        }
        _ => None,
    }
}

/// A tensor's name as a regular expression for itself: dots are what names are full of.
fn expression_for(name: &str) -> String {
    name.replace('.', "\\.")
}

/// Says on standard error what the owner of a model's files may not expect.
pub(crate) fn remarks(checkpoint: &Checkpoint) {
    checkpoint.remarks().iter().for_each(|remark| eprintln!("note: {remark}"));
}

/// Whether an error is that of an output which is there already.
fn is_output_in_the_way(error: &(dyn std::error::Error + 'static)) -> bool {
    let archive = error.downcast_ref();
    #[cfg(feature = "models")]
    let archive = archive.or_else(|| {
        let calibration = match error.downcast_ref() {
            Some(ModelError::Calibration(error)) => Some(&**error),
            _ => error.downcast_ref(),
        };
        match calibration {
            Some(CalibrationError::Archive(error)) => Some(&**error),
            _ => None,
        }
    });
    matches!(archive, Some(ArchiveError::OutputExists { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_message_names_every_cause_once() {
        #[derive(Debug)]
        struct Outer(std::io::Error);
        impl std::fmt::Display for Outer {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "outer: {}", self.0)
            }
        }
        impl std::error::Error for Outer {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(&self.0)
            }
        }
        let error = anyhow::Error::new(Outer(std::io::Error::other("inner\n"))).context("here");
        assert_eq!(message(&error), "here: outer: inner");
    }

    #[test]
    fn an_output_in_the_way_brings_the_option_that_replaces_it() {
        let error = || ArchiveError::OutputExists { path: "out".into() };
        let expected =
            "out exists already, and replacing it was not asked for; --overwrite replaces it if PIXEL wrote it";
        assert_eq!(message(&error().into()), expected);
        let wrapped = anyhow::Result::<()>::Err(error().into()).context("saving").unwrap_err();
        assert_eq!(message(&wrapped), format!("saving: {expected}"));
        #[cfg(feature = "models")]
        {
            assert_eq!(message(&CalibrationError::from(error()).into()), expected);
            assert_eq!(message(&ModelError::from(CalibrationError::from(error())).into()), expected);
        }
        let other = ArchiveError::NoWeights { path: "out".into() };
        assert!(!message(&other.into()).contains("--overwrite"));
    }
}
