//! Tables and numbers as the commands print them.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanBytes;

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
