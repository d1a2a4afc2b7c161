//! Tables and numbers as the commands print them.

use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanBytes;
use std::path::Path;

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

/// Writes a small text under its final name only when it is complete.
pub(crate) fn write_new(path: &Path, text: &str, overwrite: bool) -> Result<()> {
    if path.symlink_metadata().is_ok() && !overwrite {
        bail!("{} exists; --overwrite replaces it", path.display());
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        // Nothing can be done about a failure here; the name says that the file is partial.
        let _ = std::fs::remove_file(&partial);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
