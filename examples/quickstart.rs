//! What PIXEL does, in one table: a small language model compressed by every codec at every rate.
//!
//! `cargo run --release --example quickstart` takes the embedded model (`examples/quickstart/`, which `train_quickstart`
//! regenerates); `cargo run --release --example quickstart -- DIR` takes a checkpoint of yours. An archive is left in
//! `target/quickstart/`, for `pixel inspect` and the other commands.

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use pixel_core::CodecSpec;
use pixel_core::archive::Checkpoint;
use pixel_core::codec::FAMILIES;
use pixel_core::compressor::{CompressionReport, Plan, RunOptions, compress_checkpoint};
use pixel_core::recipe::Recipe;
use std::path::{Path, PathBuf};

/// The embedded model: file names and contents.
const MODEL: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("quickstart/model/config.json")),
    ("model.safetensors", include_bytes!("quickstart/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("quickstart/model/tokenizer.json")),
];

/// Where the archive is left, from the directory in which the example runs.
const OUTPUT: &str = "target/quickstart";

fn main() -> Result<()> {
    let output = Path::new(OUTPUT);
    std::fs::create_dir_all(output).with_context(|| format!("cannot create {OUTPUT}"))?;
    let model = match std::env::args_os().nth(1) {
        Some(path) => PathBuf::from(path),
        None => write_model(&output.join("model"))?,
    };
    let checkpoint = Checkpoint::open(&model)?;
    let weights: usize = checkpoint.tensors().values().map(|info| info.shape.iter().product::<usize>()).sum();
    println!("{}: {} tensors, {weights} weights\n", model.display(), checkpoint.tensors().len());

    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["codec", "bits", "bits/weight", "weight file, bytes", "ratio", "relative MSE", "SQNR, dB"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    let scratch = tempfile::tempdir()?;
    for family in FAMILIES {
        for &bits in family.rates() {
            let spec = CodecSpec::new(family.name(), bits);
            let report = compress(&checkpoint, &spec, &scratch.path().join(spec.to_string().replace(':', "-")))?;
            // The layers' group; the others are the embedding at 8 bits and the vectors.
            let groups = report.groups();
            let layers =
                groups.iter().find(|group| group.treatment == spec.to_string()).context("no layers to compress")?;
            table.add_row([
                family.name().to_owned(),
                bits.to_string(),
                format!("{:.3}", layers.bits_per_weight()),
                report.weight_file_bytes.to_string(),
                format!("{:.2}×", report.compression_ratio()),
                format!("{:.5}", layers.sums.relative_mse()),
                format!("{:.2}", layers.sums.sqnr_db()),
            ]);
        }
    }
    println!("{table}");
    println!("Bits per weight and error are those of the layers, scales counted. The file holds everything: layers,");
    println!("embeddings and heads at 8 bits, vectors as they were, header.\n");

    let archive = output.join("trellis-2");
    compress(&checkpoint, &CodecSpec::new("trellis", 2.0), &archive)?;
    println!(
        "An archive at 2 bits is in {0}. Look into it:\n  cargo run --release -p pixel-cli -- inspect {0}",
        archive.display()
    );
    Ok(())
}

/// Compresses the layers by `spec`, the rest as the default recipe says.
fn compress(checkpoint: &Checkpoint, spec: &CodecSpec, output: &Path) -> Result<CompressionReport> {
    let mut recipe = Recipe::default();
    recipe.layers.codec = Some(spec.codec.clone());
    recipe.layers.bits = Some(spec.bits);
    let plan = Plan::new(checkpoint, &recipe.compile()?)?;
    let options = RunOptions { threads: 0, overwrite: true };
    Ok(compress_checkpoint(checkpoint, &plan, output, options, &())?)
}

/// Writes the embedded model to `dir`.
fn write_model(dir: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for (name, contents) in MODEL {
        let path = dir.join(name);
        std::fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(dir.to_owned())
}
