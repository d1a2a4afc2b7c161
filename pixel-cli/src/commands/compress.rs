//! `pixel compress`.

use super::run_args::RunArgs;
use crate::output::{self, table};
use crate::progress::Bar;
use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use pixel_core::CodecSpec;
use pixel_core::archive::Checkpoint;
use pixel_core::calibration::Calibration;
use pixel_core::codec::FAMILIES;
use pixel_core::compressor::{
    CompressionReport, Plan, Sample, Scope, allocate_rates, compress_checkpoint, sample_errors,
};
use pixel_core::metrics::ErrorSums;
use pixel_core::recipe::{Decision, Recipe, Rule, Treatment};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Tensors that a dry run takes rows from.
const DRY_RUN_SAMPLES: usize = 12;

/// Compress a safetensors checkpoint
///
/// IN is a safetensors file or a Hugging Face directory, sharded or not. By default the matrices of layers are coded by
/// the trellis at 2 bits, embeddings and output heads by the uniform codec at 8 bits, and everything else (vectors,
/// convolutions, integers, matrices under 1024 weights) is stored as it is. Options of the command line override the
/// recipe.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checkpoint: a .safetensors file or a directory
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The archive: a directory, or a file if it ends in .safetensors
    #[arg(value_name = "OUT", required_unless_present_any = ["dry_run", "print_recipe"])]
    output: Option<PathBuf>,
    /// Bits per weight of layers, scales apart; `pixel codecs` lists the rates
    #[arg(long, short)]
    bits: Option<f64>,
    /// Codec of layers; `pixel codecs` describes them
    #[arg(long, short, value_parser = PossibleValuesParser::new(FAMILIES.map(|family| family.name())))]
    codec: Option<String>,
    /// Option of the layers' codec, such as window=12; may be repeated
    #[arg(long, short, value_name = "NAME=VALUE")]
    option: Vec<String>,
    /// Embeddings and output heads: CODEC:BITS, "same" as the layers, or "keep"
    #[arg(long, value_name = "HOW")]
    embeddings: Option<String>,
    /// Rotate before coding: auto (as the codec prefers), always, never
    #[arg(long, value_enum, default_value_t = Rotate::Auto)]
    rotate: Rotate,
    /// Columns of each layer that are stored in F16 beside the codes: those with the most energy, by the calibration if
    /// there is one
    #[arg(long, value_name = "N")]
    protect: Option<usize>,
    /// A recipe in TOML: treatments and an ordered list of regular expressions
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// What the layers read, from `pixel calibrate`: errors are fed back so that the layers' outputs change least
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Damping of error feedback, in units of the mean power of the inputs
    #[arg(long, requires = "calibration")]
    damping: Option<f64>,
    /// Choose a rate for each layer so that this many bits a weight are stored on average, all counted
    #[arg(long, value_name = "BITS", requires = "calibration", conflicts_with = "bits")]
    target_bits: Option<f64>,
    /// What --target-bits is the mean of
    #[arg(long, value_enum, default_value_t = TargetScope::Layers, requires = "target_bits")]
    target_scope: TargetScope,
    /// Write the recipe with the rates that --target-bits chose, and their predicted losses
    #[arg(long, value_name = "FILE", requires = "target_bits")]
    save_recipe: Option<PathBuf>,
    /// Compress only tensors whose name matches; may be repeated
    #[arg(long, value_name = "REGEX")]
    include: Vec<String>,
    /// Store tensors whose name matches as they are; may be repeated
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<String>,
    /// Seed of the rotations
    #[arg(long)]
    seed: Option<u64>,
    /// Write nothing: print the exact size, the peak memory, and the error of sampled rows
    #[arg(long)]
    dry_run: bool,
    /// Print the recipe that results from file and options, and stop
    #[arg(long)]
    print_recipe: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Rotate {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum TargetScope {
    /// The layers that are compressed
    Layers,
    /// Everything in the weight files: embeddings, tensors stored as they are, headers
    All,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let mut recipe = self.recipe()?;
        if self.print_recipe {
            print!("{}", recipe.to_toml());
            return Ok(ExitCode::SUCCESS);
        }
        let checkpoint = Checkpoint::open(&self.input)?;
        let calibration = self.calibration.as_deref().map(Calibration::open).transpose()?.map(Arc::new);
        if let (Some(target), Some(calibration)) = (self.target_bits, &calibration) {
            recipe = self.allocate(&checkpoint, &recipe, calibration, target)?;
        }
        let mut plan = Plan::new(&checkpoint, &recipe.compile()?)?;
        if let Some(calibration) = calibration {
            plan = plan.with_calibration(&checkpoint, calibration)?;
        }
        if plan.items().iter().all(|item| matches!(item.decision, Decision::Keep(_))) {
            bail!("{}: no tensor would be compressed; see --include, --exclude and the recipe", self.input.display());
        }
        match (self.dry_run, &self.output) {
            (true, _) => self.print_dry_run(&checkpoint, &plan, &sample_errors(&checkpoint, &plan, DRY_RUN_SAMPLES)?),
            (false, Some(output)) => {
                let bar = Bar::new(
                    plan.items().iter().map(|item| item.num_weights()).sum(),
                    self.run.quiet || self.run.json,
                )?;
                let report = compress_checkpoint(&checkpoint, &plan, output, self.run.options(), &bar)?;
                bar.finish();
                self.print_report(&report)?;
            }
            (false, None) => bail!("OUT is missing"),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The recipe with a rate for each layer.
    fn allocate(
        &self,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        calibration: &Arc<Calibration>,
        target: f64,
    ) -> Result<Recipe> {
        let scope = match self.target_scope {
            TargetScope::Layers => Scope::Layers,
            TargetScope::All => Scope::All,
        };
        if !self.run.quiet && !self.run.json {
            eprintln!("measuring every layer at every rate");
        }
        let threads = self.run.threads;
        let found = allocate_rates(checkpoint, recipe, calibration, target, scope, threads, &())?;
        if let Some(path) = &self.save_recipe {
            output::write_new(path, &found.to_toml(), self.run.options().overwrite)?;
        }
        if !self.run.quiet && !self.run.json {
            let mut by_codec: BTreeMap<&str, (usize, u64, f64)> = BTreeMap::new();
            for tensor in &found.tensors {
                let group = by_codec.entry(&tensor.codec).or_default();
                *group = (group.0 + 1, group.1 + tensor.weights, group.2 + tensor.loss);
            }
            let mut rates = table(&["rate", "tensors", "weights", "predicted loss"], 1);
            for (codec, (tensors, weights, loss)) in by_codec {
                rates.add_row([codec.to_owned(), tensors.to_string(), weights.to_string(), output::error(loss)]);
            }
            println!("{rates}");
            let uniform = found.uniform_loss.map_or(String::new(), |loss| {
                format!(
                    "; one rate for all at that size: {}, {:+.0} %",
                    output::error(loss),
                    100.0 * (loss / found.loss - 1.0)
                )
            });
            println!("mean {:.4} bits, predicted loss {}{uniform}", found.mean_bits, output::error(found.loss));
        }
        Ok(found.recipe)
    }

    /// The recipe file, if there is one, with the options of the command line laid over it.
    fn recipe(&self) -> Result<Recipe> {
        let mut recipe = match &self.recipe {
            None => Recipe::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
                Recipe::from_toml(&text).with_context(|| path.display().to_string())?
            }
        };
        if let Some(codec) = &self.codec {
            if recipe.layers.codec.as_ref() != Some(codec) {
                recipe.layers.options = None;
            }
            recipe.layers.codec = Some(codec.clone());
        }
        recipe.layers.bits = self.bits.or(recipe.layers.bits);
        for option in &self.option {
            let (name, value) =
                option.split_once('=').with_context(|| format!("--option {option}: expected NAME=VALUE"))?;
            let value = value.parse().with_context(|| format!("--option {option}: {value} is not a whole number"))?;
            recipe.layers.options.get_or_insert_default().insert(name.to_owned(), value);
        }
        recipe.layers.rotate = match self.rotate {
            Rotate::Auto => recipe.layers.rotate,
            Rotate::Always => Some(true),
            Rotate::Never => Some(false),
        };
        recipe.layers.protect = self.protect.or(recipe.layers.protect);
        match self.embeddings.as_deref() {
            None => {}
            Some("keep") => recipe.embeddings = Treatment { keep: Some(true), ..Default::default() },
            Some("same") => recipe.embeddings = recipe.layers.clone(),
            Some(spec) => {
                let CodecSpec { codec, bits, options } = spec.parse().context("--embeddings")?;
                let options = Some(options).filter(|options| !options.is_empty());
                recipe.embeddings = Treatment { codec: Some(codec), bits: Some(bits), options, ..Default::default() };
            }
        }
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.damping = self.damping.unwrap_or(recipe.damping);
        if !self.include.is_empty() {
            recipe.layers.keep = Some(true);
            recipe.embeddings.keep = Some(true);
            recipe.rules.extend(self.include.iter().map(|pattern| keep_rule(pattern, false)));
        }
        recipe.rules.splice(0..0, self.exclude.iter().map(|pattern| keep_rule(pattern, true)));
        Ok(recipe)
    }

    fn print_dry_run(&self, checkpoint: &Checkpoint, plan: &Plan, samples: &[Sample]) {
        if self.run.quiet {
            return;
        }
        let source = checkpoint.file_bytes();
        let threads = match self.run.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
        .min(plan.items().len());
        if self.run.json {
            let samples: Vec<_> = samples
                .iter()
                .map(|s| json!({ "tensor": s.name, "codec": s.codec, "rows": s.rows, "relative_mse": s.error.relative_mse(), "output_loss": s.output.map(|o| o.relative_mse()) }))
                .collect();
            let report = json!({
                "source_file_bytes": source,
                "weight_file_bytes": plan.stored_bytes(),
                "peak_memory_bytes": plan.peak_memory(threads),
                "threads": threads,
                "samples": samples,
            });
            println!("{report:#}");
            return;
        }
        println!("{}: {} tensors in {} file(s)", self.input.display(), plan.items().len(), checkpoint.shards().len());
        let mut groups: BTreeMap<String, (usize, u64, u64)> = BTreeMap::new();
        for item in plan.items() {
            let key = match &item.decision {
                Decision::Keep(reason) => format!("kept ({reason})"),
                Decision::Compress { codec, .. } => codec.to_string(),
            };
            let group = groups.entry(key).or_default();
            *group = (group.0 + 1, group.1 + item.num_weights(), group.2 + item.stored_bytes);
        }
        let mut sizes = table(&["treatment", "tensors", "weights", "bytes", "bits per weight"], 1);
        for (treatment, (tensors, weights, bytes)) in groups {
            let bits = format!("{:.3}", bytes as f64 * 8.0 / weights as f64);
            sizes.add_row([treatment, tensors.to_string(), weights.to_string(), bytes.to_string(), bits]);
        }
        println!("{sizes}");
        let mut errors = table(&["sampled tensor", "codec", "rows", "relative MSE", "output loss"], 2);
        let mut by_codec: BTreeMap<&str, ErrorSums> = BTreeMap::new();
        for s in samples {
            let rows = s.rows.to_string();
            let output = s.output.map_or("-".to_owned(), |sums| output::error(sums.relative_mse()));
            errors.add_row([s.name.as_str(), &s.codec, &rows, &output::error(s.error.relative_mse()), &output]);
            *by_codec.entry(&s.codec).or_default() += s.error;
        }
        println!("{errors}");
        for (codec, error) in by_codec {
            println!("{codec}: relative MSE {} over the samples", output::error(error.relative_mse()));
        }
        println!("weight files: {} -> {}", output::bytes(source), output::bytes(plan.stored_bytes()));
        println!(
            "peak memory beyond the mapped input, {threads} worker(s): at most {}",
            output::bytes(plan.peak_memory(threads))
        );
        println!("dry run: nothing was written");
    }

    fn print_report(&self, report: &CompressionReport) -> Result<()> {
        if self.run.json {
            let groups: Vec<_> = report
                .groups()
                .iter()
                .map(|group| {
                    json!({
                        "treatment": group.treatment,
                        "tensors": group.tensors,
                        "weights": group.weights,
                        "stored_bytes": group.stored_bytes,
                        "bits_per_weight": group.bits_per_weight(),
                        "relative_mse": group.sums.relative_mse(),
                        "calibrated": group.calibrated,
                        "output_loss": (group.calibrated > 0).then_some(group.output_loss),
                    })
                })
                .collect();
            let summary = json!({
                "groups": groups,
                "compression_ratio": report.compression_ratio(),
                "compressed_bits_per_weight": report.compressed_bits_per_weight(),
                "total_bits_per_weight": report.total_bits_per_weight(),
                "relative_mse": report.relative_mse(),
                "report": serde_json::to_value(report)?,
            });
            println!("{summary:#}");
        } else if !self.run.quiet {
            let columns = ["treatment", "tensors", "weights", "bytes", "bits/weight", "relative MSE", "output loss"];
            let mut groups = table(&columns, 1);
            for group in report.groups() {
                groups.add_row([
                    group.treatment.clone(),
                    group.tensors.to_string(),
                    group.weights.to_string(),
                    group.stored_bytes.to_string(),
                    format!("{:.4}", group.bits_per_weight()),
                    output::error(group.sums.relative_mse()),
                    if group.calibrated > 0 { output::error(group.output_loss) } else { "-".to_owned() },
                ]);
            }
            println!("{groups}");
            for tensor in report.tensors.iter().filter(|tensor| tensor.damping_retries > 0) {
                let (retries, damping) = (tensor.damping_retries, tensor.damping.unwrap_or_default());
                println!("damping       {}: doubled {retries} times, to {damping:.3}", tensor.name);
            }
            let (from, to) = (report.source_file_bytes, report.weight_file_bytes);
            println!(
                "weight files  {} -> {}, {:.2}×",
                output::bytes(from),
                output::bytes(to),
                report.compression_ratio()
            );
            if report.side_file_bytes > 0 {
                println!("other files   {}", output::bytes(report.side_file_bytes));
            }
            for file in &report.left_out {
                println!("not copied    {} (weights in another form, or a link)", file.display());
            }
        }
        Ok(())
    }
}

fn keep_rule(pattern: &str, keep: bool) -> Rule {
    Rule { pattern: pattern.to_owned(), treatment: Treatment { keep: Some(keep), ..Default::default() } }
}
