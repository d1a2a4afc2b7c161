//! Programs that obey lines of JSON, and what they say about themselves.

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fs;
use std::io::{Write, stdin, stdout};
use std::path::Path;

/// Reads a request from each line of standard input and writes a line for it: what `obey` returns, or `{"error"}`.
///
/// # Errors
/// If a line cannot be read or written.
pub fn serve<R: DeserializeOwned>(mut obey: impl FnMut(R) -> Result<Value>) -> Result<()> {
    for line in stdin().lines() {
        let reply = serde_json::from_str(&line?).map_err(Into::into).and_then(&mut obey);
        answer(&reply.unwrap_or_else(|error| json!({ "error": format!("{error:#}") })))?;
    }
    Ok(())
}

/// Writes a line to standard output.
///
/// # Errors
/// If it cannot be written.
pub fn answer(value: &Value) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

/// A line of `/proc/self/status` that is in kilobytes, in bytes; `None` where the system has none.
pub fn status_bytes(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// What a model needs to run, in bytes: its weights, configuration and tokenizer.
///
/// # Errors
/// If the directory cannot be listed.
pub fn file_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The list of files is hidden.
        let is_needed = !name.starts_with('.') && [".safetensors", ".pixel", ".json"].iter().any(|e| name.ends_with(e));
        if is_needed {
            bytes += fs::metadata(path)?.len();
        }
    }
    Ok(bytes)
}
