//! What PIXEL does, in one table: a small language model at 4, 3 and 2 bits a weight, and what it still knows.
//!
//! ```sh
//! cargo run --release --example quickstart
//! ```
//!
//! ```text
//! model ──▶ calibrate ──▶ compress ──▶ load ──▶ perplexity, text
//! ```
//!
//! Model and texts are embedded (`examples/quickstart/`, which `train_quickstart` regenerates). Everything is written
//! to a temporary directory, which is removed at the end.

use anyhow::{Context, Result};
use burn::tensor::Device;
use comfy_table::{CellAlignment, Table, presets};
use pixel_core::CodecSpec;
use pixel_core::archive::Checkpoint;
use pixel_core::archive::calibration::{Calibration, Weighting};
use pixel_core::compressor::{CompressionReport, RunOptions, compress_checkpoint};
use pixel_core::math::metrics::bits_per_weight;
use pixel_core::plan::{Plan, Recipe, Treatment};
use pixel_models::calibrate::{CalibrationTokens, calibrate_causal};
use pixel_models::evaluate::{PerplexityConfig, perplexity};
use pixel_models::generate::generate;
use pixel_models::sampling::SamplingConfig;
use pixel_models::tokenizer::TextTokenizer;
use pixel_models::{CausalModel, LoadOptions};
use pixel_nn::calibration::CalibrationOptions;
use pixel_nn::{SynthesisMode, WeightCache};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// The embedded model: file names and contents.
const MODEL: [(&str, &[u8]); 3] = [
    ("config.json", include_bytes!("quickstart/model/config.json")),
    ("model.safetensors", include_bytes!("quickstart/model/model.safetensors")),
    ("tokenizer.json", include_bytes!("quickstart/model/tokenizer.json")),
];

/// Text to calibrate with.
const CALIBRATION: &str = include_str!("quickstart/text/calibration.txt");

/// Text to measure on, which neither training nor calibration has seen.
const HELD_OUT: &str = include_str!("quickstart/text/held-out.txt");

/// Tokens to calibrate with, of 140 thousand.
const CALIBRATION_TOKENS: usize = 16_384;

/// Chunks of the held-out text to measure on, of 272.
const CHUNKS: usize = 128;

/// The beginning of a text to go on with.
const PROMPT: &str = "There were nine buns in the basket. Mossy the squirrel stole four of them.";

/// A line of the table.
struct Line {
    layers: String,
    bits_per_weight: f64,
    file_bytes: u64,
    perplexity: f64,
}

fn main() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = dir.path().join("dense");
    write_model(&source)?;
    let checkpoint = Checkpoint::open(&source)?;
    let dense = load(&source)?;
    let calibration = Arc::new(calibrate(&dense, &dir.path().join("calibration.safetensors"))?);

    let mut lines = vec![dense_line(&checkpoint, &dense)?];
    let mut texts = vec![("dense".to_owned(), continued(&dense)?)];
    // Round to nearest, the yardstick, and PIXEL's trellis, the codec for rows as short as these, whose errors are fed
    // back to keep the layers' outputs.
    for (codec, calibration) in [("uniform", None), ("trellis", Some(&calibration))] {
        for bits in [4.0, 3.0, 2.0] {
            let spec = CodecSpec::new(codec, bits);
            let archive = dir.path().join(format!("{codec}-{bits}"));
            let report = compress(&checkpoint, &spec, calibration, &archive)?;
            let model = load(&archive)?;
            lines.push(line(&spec, &report, &model)?);
            if bits == 2.0 {
                texts.push((spec.to_string(), continued(&model)?));
            }
        }
    }
    print_lines(&lines);
    println!("\n\"{PROMPT} …\", the likeliest token each time:");
    for (layers, text) in texts {
        println!("{layers:>10}  … {text}");
    }
    Ok(())
}

/// Writes the embedded model to `dir`.
fn write_model(dir: &Path) -> Result<()> {
    fs::create_dir(dir)?;
    for (name, contents) in MODEL {
        fs::write(dir.join(name), contents)?;
    }
    Ok(())
}

/// Loads a checkpoint or an archive; what is decoded stays, so that each weight is decoded once.
fn load(path: &Path) -> Result<CausalModel> {
    let synthesis = SynthesisMode::Cached(WeightCache::new(64 << 20));
    let options = LoadOptions::default().with_synthesis(synthesis);
    Ok(pixel_models::load(path, &options, &Device::flex())?.into_causal()?)
}

fn tokenizer(model: &CausalModel) -> Result<&TextTokenizer> {
    model.tokenizer.as_ref().context("there is no tokenizer.json next to the model")
}

/// Collects what the layers read, each token by how much the model's output hangs on it.
fn calibrate(model: &CausalModel, output: &Path) -> Result<Calibration> {
    let tokenizer = tokenizer(model)?;
    let text = tokenizer.encode_plain(CALIBRATION)?;
    let tokens = CalibrationTokens::chunks(&text, model.max_positions, CALIBRATION_TOKENS, tokenizer.added_bos())?;
    let options = CalibrationOptions { weighting: Weighting::Gradient, ..CalibrationOptions::new() };
    calibrate_causal(model, &tokens, &options, output, &mut |_| {})?;
    Ok(Calibration::open(output)?)
}

/// Compresses the layers by `spec`, embeddings and vectors as the default recipe says: at 8 bits, and not at all.
fn compress(
    checkpoint: &Checkpoint,
    spec: &CodecSpec,
    calibration: Option<&Arc<Calibration>>,
    output: &Path,
) -> Result<CompressionReport> {
    let (codec, bits) = (Some(spec.codec.clone()), Some(spec.bits));
    let recipe = Recipe { layers: Treatment { codec, bits, ..Treatment::default() }, ..Recipe::default() };
    let mut plan = Plan::new(checkpoint, &recipe.compile()?)?;
    if let Some(calibration) = calibration {
        plan = plan.with_calibration(checkpoint, Arc::clone(calibration))?;
    }
    Ok(compress_checkpoint(checkpoint, &plan, output, RunOptions::default(), &())?)
}

/// The perplexity on the held-out text: that of the second half of each chunk, as long as the model's context.
fn held_out_perplexity(model: &CausalModel) -> Result<f64> {
    let tokenizer = tokenizer(model)?;
    let config = PerplexityConfig::new().with_context(model.max_positions).with_chunks(Some(CHUNKS));
    let tokens = tokenizer.encode_plain(HELD_OUT)?;
    let logits = |tokens| model.network.forward(tokens);
    let found = perplexity(&config, &tokens, tokenizer.added_bos(), &Device::flex(), logits, |_, _, _| ())?;
    Ok(found.perplexity.value)
}

/// What the model makes of the prompt.
fn continued(model: &CausalModel) -> Result<String> {
    let tokenizer = tokenizer(model)?;
    let greedy = SamplingConfig::new().with_temperature(0.0).with_max_tokens(32);
    let found = generate(model, &tokenizer.encode(PROMPT)?, &greedy, |_| ControlFlow::Continue(()))?;
    Ok(tokenizer.decode(&found.tokens)?.trim().replace('\n', " "))
}

fn dense_line(checkpoint: &Checkpoint, model: &CausalModel) -> Result<Line> {
    let tensors = || checkpoint.tensors().values();
    let weights: usize = tensors().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let bytes: u64 = tensors().map(|tensor| tensor.num_bytes()).sum();
    Ok(Line {
        layers: "dense".to_owned(),
        bits_per_weight: bits_per_weight(bytes, weights as u64),
        file_bytes: checkpoint.file_bytes(),
        perplexity: held_out_perplexity(model)?,
    })
}

fn line(spec: &CodecSpec, report: &CompressionReport, model: &CausalModel) -> Result<Line> {
    // The others are the embedding and the vectors.
    let groups = report.groups();
    let layers = groups.iter().find(|group| group.treatment == spec.to_string()).context("no layer was compressed")?;
    Ok(Line {
        layers: if layers.calibrated > 0 { format!("{spec}, calibrated") } else { spec.to_string() },
        bits_per_weight: layers.bits_per_weight(),
        file_bytes: report.weight_file_bytes,
        perplexity: held_out_perplexity(model)?,
    })
}

/// Prints the table, each line compared with the first.
fn print_lines(lines: &[Line]) {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_header(["layers", "bits/weight", "weight file, bytes", "ratio", "perplexity", "to dense"]);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    for line in lines {
        table.add_row([
            line.layers.clone(),
            format!("{:.3}", line.bits_per_weight),
            line.file_bytes.to_string(),
            format!("{:.2}×", lines[0].file_bytes as f64 / line.file_bytes as f64),
            format!("{:.3}", line.perplexity),
            format!("{:.3}×", line.perplexity / lines[0].perplexity),
        ]);
    }
    println!("{table}");
    println!("Bits per weight are those of the layers, scales and padding counted. The file holds everything: layers,");
    println!(
        "the embedding at 8 bits, vectors as they were, header. Perplexity as llama.cpp's tool measures it, of a text"
    );
    println!(
        "that neither training nor calibration has seen: {CHUNKS} chunks of 256 tokens, the second half of each scored."
    );
}
