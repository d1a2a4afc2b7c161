//! `pixel inspect`.

use crate::output::{self, table};
use anyhow::{Context, Result};
use pixel_core::LowRankSpec;
use pixel_core::archive::{Archive, Checkpoint, MANIFEST_KEY};
use pixel_core::math::metrics::bits_per_weight;
use pixel_core::plan::Role;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// List what an archive holds, to the byte
///
/// A plain checkpoint is listed too, without codecs and errors.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive
    #[arg(value_name = "ARCHIVE")]
    input: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    role: Role,
    shape: Vec<usize>,
    dtype: String,
    codec: Option<String>,
    rotated: Option<bool>,
    protected: usize,
    low_rank: Option<LowRankSpec>,
    /// Bytes of the low-rank factors, part of `bytes`.
    low_rank_bytes: u64,
    bytes: u64,
    bits_per_weight: f64,
    relative_mse: Option<f64>,
}

/// Everything on disk, part by part.
#[derive(Debug, Serialize)]
struct Listing {
    tensors: BTreeMap<String, Line>,
    header_bytes: u64,
    other_file_bytes: u64,
    total_bytes: u64,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let checkpoint = Checkpoint::open(&self.input)?;
        let header_bytes = checkpoint.shards().iter().map(|shard| shard.header_bytes).sum();
        output::remarks(&checkpoint);
        let total_bytes = size_of(checkpoint.root())?;
        let is_archive = checkpoint.shards().iter().any(|shard| shard.metadata.contains_key(MANIFEST_KEY));
        let tensors =
            if is_archive { archive_lines(&Archive::from_checkpoint(checkpoint)?) } else { dense_lines(&checkpoint) };
        let tensor_bytes: u64 = tensors.values().map(|line| line.bytes).sum();
        let other_file_bytes = total_bytes.saturating_sub(header_bytes + tensor_bytes);
        let listing = Listing { tensors, header_bytes, other_file_bytes, total_bytes };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&listing)?)
        } else {
            listing.print()
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn archive_lines(archive: &Archive) -> BTreeMap<String, Line> {
    let mut lines = dense_lines(archive.checkpoint());
    lines.retain(|name, _| archive.kept().contains_key(name));
    lines.extend(archive.entries().iter().map(|(name, entry)| {
        let (manifest, header) = (entry.manifest(), entry.header());
        let line = Line {
            role: Role::of(name),
            shape: <[usize; 2]>::from(header.shape).to_vec(),
            dtype: manifest.dtype.dtype().to_string(),
            codec: Some(header.codec.to_string()),
            rotated: Some(header.rotation.is_some()),
            protected: header.protected,
            low_rank: header.low_rank,
            low_rank_bytes: header.low_rank.map_or(0, |part| part.num_bytes(header.shape) as u64),
            bytes: entry.num_bytes(),
            bits_per_weight: bits_per_weight(entry.num_bytes(), header.shape.num_weights() as u64),
            relative_mse: Some(manifest.relative_mse),
        };
        (name.clone(), line)
    }));
    lines
}

fn dense_lines(checkpoint: &Checkpoint) -> BTreeMap<String, Line> {
    let line = |(name, info): (&String, &pixel_core::archive::TensorInfo)| {
        let line = Line {
            role: Role::of(name),
            shape: info.shape.clone(),
            dtype: info.dtype.to_string(),
            codec: None,
            rotated: None,
            protected: 0,
            low_rank: None,
            low_rank_bytes: 0,
            bytes: info.num_bytes(),
            bits_per_weight: bits_per_weight(info.num_bytes(), info.shape.iter().product::<usize>() as u64),
            relative_mse: None,
        };
        (name.clone(), line)
    };
    checkpoint.tensors().iter().map(line).collect()
}

impl Listing {
    fn print(&self) {
        self.print_tensors();
        self.print_groups();
        let line = |name: &str, bytes| println!("{name:<20} {}", output::bytes(bytes));
        line("headers", self.header_bytes);
        line("other files", self.other_file_bytes);
        line("total", self.total_bytes);
    }

    fn print_tensors(&self) {
        let mut table =
            table(&["tensor", "role", "dtype", "codec", "shape", "bytes", "bits/weight", "relative MSE"], 4);
        for (name, line) in &self.tensors {
            table.add_row([
                name.clone(),
                line.role.to_string(),
                line.dtype.clone(),
                line.treatment(),
                output::shape(&line.shape),
                line.bytes.to_string(),
                format!("{:.4}", line.bits_per_weight),
                line.relative_mse.map_or("-".into(), output::error),
            ]);
        }
        println!("{table}");
    }

    /// The tensors summed up by codec, and the low-rank parts among them.
    fn print_groups(&self) {
        let mut groups: BTreeMap<(bool, &str), (usize, u64, u64)> = BTreeMap::new();
        for line in self.tensors.values() {
            let group = groups.entry((line.codec.is_none(), line.codec())).or_default();
            let weights = line.shape.iter().product::<usize>() as u64;
            *group = (group.0 + 1, group.1 + weights, group.2 + line.bytes);
        }
        for ((_, codec), (tensors, weights, bytes)) in groups {
            let (bits, bytes) = (bits_per_weight(bytes, weights), output::bytes(bytes));
            println!("{codec:<20} {bytes}, {tensors} tensors, {weights} weights, {bits:.4} bits/weight");
        }
        let parts = || self.tensors.values().filter(|line| line.low_rank.is_some());
        if parts().next().is_some() {
            let factors: u64 = parts().map(|line| line.low_rank_bytes).sum();
            let codes = parts().map(|line| line.bytes).sum::<u64>() - factors;
            let (factors, codes, tensors) = (output::bytes(factors), output::bytes(codes), parts().count());
            println!("{:<20} {tensors} tensors: {factors} of factors, {codes} of codes", "of low rank");
        }
    }
}

impl Line {
    fn codec(&self) -> &str {
        self.codec.as_deref().unwrap_or("as it was")
    }

    /// The codec, and what there is in addition.
    fn treatment(&self) -> String {
        let mut text = self.codec().to_owned();
        if self.rotated == Some(true) {
            text += ", rotated";
        }
        if self.protected > 0 {
            text += &format!(", {} columns protected", self.protected);
        }
        if let Some(part) = self.low_rank {
            text += &format!(", {part}");
        }
        text
    }
}

/// Bytes of a file, or of all files under a directory.
fn size_of(path: &Path) -> Result<u64> {
    let context = || format!("cannot read {}", path.display());
    let metadata = std::fs::metadata(path).with_context(context)?;
    if !metadata.is_dir() {
        return Ok(metadata.len());
    }
    let mut total = 0;
    for entry in std::fs::read_dir(path).with_context(context)? {
        total += size_of(&entry.with_context(context)?.path())?;
    }
    Ok(total)
}
