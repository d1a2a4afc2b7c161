//! `pixel verify`.

use crate::output;
use anyhow::Result;
use pixel_core::archive::{Archive, Model};
use pixel_core::math::metrics::ErrorSums;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// A measured error may exceed the recorded one by this factor: the record is summed in another order, before the
/// weights are rotated back and rounded to their type.
const RECORD_TOLERANCE: f64 = 1.01;
/// And by this much, for errors near the rounding of f32.
const RECORD_SLACK: f64 = 1e-9;

/// Failures that the text names; a wrong source has one for each tensor.
const FAILURES_SHOWN: usize = 20;

/// Check an archive: hashes, and with --against every weight
///
/// Exit status 1 if anything differs or an error exceeds the threshold.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive
    #[arg(value_name = "ARCHIVE")]
    input: PathBuf,
    /// The checkpoint that it was made from: decode every tensor and compare
    #[arg(long, value_name = "SOURCE")]
    against: Option<PathBuf>,
    /// Fail if a packed tensor's relative mean squared error is larger: the measured one with --against, else the
    /// recorded
    #[arg(long, value_name = "ERROR")]
    max_relative_mse: Option<f64>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let archive = Archive::open(&self.input)?;
        let source = self.against.as_deref().map(Model::open).transpose()?;
        output::remarks(archive.checkpoint());
        source.iter().for_each(|source| output::remarks(source.checkpoint()));
        let mut failures = Vec::new();
        let mut sums: BTreeMap<String, ErrorSums> = BTreeMap::new();
        for (name, entry) in archive.entries() {
            match self.check_packed(&archive, name, source.as_ref()) {
                Ok(error) => {
                    if let Some(error) = error {
                        *sums.entry(entry.header().codec.to_string()).or_default() += error;
                    }
                    let relative = error.map_or(entry.manifest().relative_mse, |error| error.relative_mse());
                    failures.extend(self.judge(name, entry.manifest().relative_mse, relative));
                }
                Err(error) => failures.push(output::message(&error)),
            }
        }
        for name in archive.kept().keys() {
            failures.extend(check_kept(&archive, name, source.as_ref()).err().map(|error| output::message(&error)));
        }
        if let Some(source) = &source {
            let known = |name: &String| archive.entries().contains_key(name) || archive.kept().contains_key(name);
            let missing = source.tensors().into_keys().filter(|name| !known(name));
            failures.extend(missing.map(|name| format!("tensor \"{name}\" of the source is not in the archive")));
        }
        self.print(&archive, &sums, &failures);
        Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Reads a packed weight and, if there is a source, measures its error.
    fn check_packed(&self, archive: &Archive, name: &str, source: Option<&Model>) -> Result<Option<ErrorSums>> {
        let packed = archive.packed(name)?;
        let Some(source) = source else { return Ok(None) };
        if let Some(bytes) = source.bytes(name)? {
            let expected = &archive.entries()[name].manifest().source_blake3;
            anyhow::ensure!(
                pixel_core::archive::blake3_hex(bytes) == *expected,
                "tensor \"{name}\": the source is not the one that was compressed (its BLAKE3 is not {expected})"
            );
        }
        let original = source.to_f32(name)?;
        anyhow::ensure!(
            original.len() == packed.shape().num_weights(),
            "tensor \"{name}\": {} weights in the archive, {} in the source",
            packed.shape(),
            original.len()
        );
        Ok(Some(ErrorSums::between(&original, packed.synthesize().as_slice())))
    }

    /// What is wrong with an error, measured or recorded.
    fn judge(&self, name: &str, recorded: f64, found: f64) -> Option<String> {
        // A NaN is within nothing.
        let is_within = |limit: f64| found <= limit;
        if !is_within(recorded * RECORD_TOLERANCE + RECORD_SLACK) {
            return Some(format!("tensor \"{name}\": relative MSE {found:.3e}, the archive records {recorded:.3e}"));
        }
        let limit = self.max_relative_mse.filter(|&limit| !is_within(limit))?;
        Some(format!("tensor \"{name}\": relative MSE {found:.3e} exceeds {limit:.3e}"))
    }

    /// Prints the errors found by codec, and the failures.
    fn print(&self, archive: &Archive, sums: &BTreeMap<String, ErrorSums>, failures: &[String]) {
        let (packed, kept) = (archive.entries().len(), archive.kept().len());
        let relative_mse: BTreeMap<&String, f64> =
            sums.iter().map(|(codec, sums)| (codec, sums.relative_mse())).collect();
        if self.json {
            let report = json!({
                "packed": packed,
                "kept": kept,
                "relative_mse": relative_mse,
                "ok": failures.is_empty(),
                "failures": failures,
            });
            println!("{report:#}");
            return;
        }
        failures.iter().take(FAILURES_SHOWN).for_each(|failure| println!("FAILED {failure}"));
        if failures.len() > FAILURES_SHOWN {
            println!("… and {} more; --json lists all", failures.len() - FAILURES_SHOWN);
        }
        for (codec, error) in relative_mse {
            println!("{codec}: relative MSE {} against the source", output::error(error));
        }
        if failures.is_empty() {
            println!("ok: {packed} packed and {kept} kept tensors read, hashes checked");
        } else {
            let failures = match failures.len() {
                1 => "1 failure".to_owned(),
                count => format!("{count} failures"),
            };
            println!("FAILED: {failures} among {packed} packed and {kept} kept tensors");
        }
    }
}

fn check_kept(archive: &Archive, name: &str, source: Option<&Model>) -> Result<()> {
    let (_, bytes) = archive.kept_bytes(name)?;
    if let Some(source) = source {
        let same = source.bytes(name)? == Some(bytes);
        anyhow::ensure!(same, "tensor \"{name}\" was kept, but differs from the source");
    }
    Ok(())
}
