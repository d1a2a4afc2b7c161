//! `pixel compress`.

use super::run_args::RunArgs;
use crate::output::{self, table};
use crate::progress::Bar;
use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;
use pixel_core::archive::Checkpoint;
use pixel_core::calibration::Calibration;
use pixel_core::codec::FAMILIES;
use pixel_core::compressor::{
    Allocation, CompressionReport, Plan, RateTarget, Sample, Scope, allocate_rates, compress_checkpoint, sample_errors,
};
use pixel_core::metrics::ErrorSums;
use pixel_core::recipe::{Decision, Recipe, Rule, Treatment};
use pixel_core::{CodecSpec, FactorStorage};
use pixel_experimental::svd::{FaerSvd, SvdSolver};
use pixel_experimental::{HybridFitter, Preset, Ranks, choose_ranks, search_memory};
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
    /// A low-rank part beside the codes: auto (where it beats the same bits spent on codes, by trial), never, or a rank.
    /// auto and RANK hold for weights for which the recipe names none; without the option it is as the recipe says
    #[arg(long, value_name = "auto|never|RANK")]
    hybrid: Option<Hybrid>,
    /// How the factors of low-rank parts are stored
    #[arg(long, value_enum)]
    factors: Option<Factors>,
    /// Who decomposes weights for low-rank parts
    #[arg(long, value_enum, default_value_t = Solver::Faer)]
    svd: Solver,
    /// Rates by the kind of layer, in place of the default recipe
    #[arg(long, value_enum, conflicts_with = "recipe")]
    preset: Option<PresetName>,
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
    /// Write the recipe with the rates that --target-bits chose, and their predicted losses, and the ranks of --hybrid auto
    #[arg(long, value_name = "FILE")]
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

/// What `--hybrid` asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Hybrid {
    Auto,
    Never,
    Rank(usize),
}

impl std::str::FromStr for Hybrid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("auto", _) => Ok(Self::Auto),
            ("never" | "0", _) => Ok(Self::Never),
            (_, Ok(rank)) => Ok(Self::Rank(rank)),
            _ => Err(format!("{text} is neither auto nor never nor a rank")),
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Factors {
    /// 8 bits with a scale for every 128
    Int8,
    /// Half precision
    F16,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Solver {
    /// All singular values, in Rust
    Faer,
    /// All singular values, by LAPACK
    #[cfg(feature = "lapack")]
    Lapack,
    /// The leading ones by random projections: faster for large weights
    #[cfg(feature = "models")]
    Randomized,
}

impl Solver {
    fn build(self) -> Arc<dyn SvdSolver> {
        match self {
            Self::Faer => Arc::new(FaerSvd),
            #[cfg(feature = "lapack")]
            Self::Lapack => Arc::new(pixel_experimental::svd::LapackSvd),
            #[cfg(feature = "models")]
            Self::Randomized => Arc::new(pixel_experimental::svd::RandomizedSvd::new(&burn::tensor::Device::flex())),
        }
    }
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum PresetName {
    /// Layers at 4 bits
    HighQuality,
    /// About 3 bits: values and outputs of attentions more, queries and keys less
    Balanced,
    /// About 2 bits, embeddings at 4
    MaxCompression,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Self {
        match name {
            PresetName::HighQuality => Self::HighQuality,
            PresetName::Balanced => Self::Balanced,
            PresetName::MaxCompression => Self::MaxCompression,
        }
    }
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.save_recipe.is_some() && self.target_bits.is_none() && self.hybrid != Some(Hybrid::Auto) {
            bail!(
                "--save-recipe writes what --target-bits or --hybrid auto found: give one of them, or --print-recipe"
            );
        }
        let mut recipe = self.recipe()?;
        if self.print_recipe {
            print!("{}", recipe.to_toml());
            return Ok(ExitCode::SUCCESS);
        }
        let checkpoint = Checkpoint::open(&self.input)?;
        let calibration = self.calibration.as_deref().map(Calibration::open).transpose()?.map(Arc::new);
        let fitter = self.fitter();
        let mut ranks = None;
        if self.hybrid == Some(Hybrid::Auto) {
            let found = self.choose_ranks(&checkpoint, &recipe, calibration.as_ref(), &fitter)?;
            recipe = found.recipe.clone();
            ranks = Some(found);
        }
        let mut toml = recipe.to_toml();
        if let (Some(target), Some(calibration)) = (self.target_bits, &calibration) {
            let found = self.allocate(&checkpoint, &recipe, calibration, target, Arc::new(fitter.clone()))?;
            (toml, recipe) = (found.to_toml(), found.recipe);
        }
        if let Some(path) = &self.save_recipe {
            output::write_new(path, &toml, self.run.options().overwrite)?;
        }
        let mut plan = Plan::new(&checkpoint, &recipe.compile()?)?.with_low_rank_fitter(Arc::new(fitter));
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
                self.print_report(&report, ranks.as_ref())?;
            }
            (false, None) => bail!("OUT is missing"),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The recipe with a rank for each weight for which one pays.
    fn choose_ranks(
        &self,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        calibration: Option<&Arc<Calibration>>,
        fitter: &HybridFitter,
    ) -> Result<Ranks> {
        let loud = !self.run.quiet && !self.run.json;
        if loud {
            eprintln!("looking for low-rank parts that pay");
        }
        let found = choose_ranks(checkpoint, recipe, calibration, fitter, self.run.threads, &())?;
        if loud {
            let columns = ["low-rank part", "rank", "extra bits", "loss ratio", "break-even", "verdict"];
            let mut parts = table(&columns, 1);
            for tensor in found.tensors.iter().filter(|tensor| tensor.verdict.measured.is_some()) {
                let verdict = &tensor.verdict;
                parts.add_row([
                    tensor.name.clone(),
                    verdict.candidate.to_string(),
                    format!("{:.4}", verdict.extra_bits),
                    format!("{:.4}", verdict.measured.unwrap_or_default()),
                    format!("{:.4}", verdict.break_even),
                    if verdict.rank > 0 { "kept" } else { "left out" }.to_owned(),
                ]);
            }
            let (chosen, all) = (found.chosen().count(), found.tensors.len());
            if parts.row_count() > 0 {
                println!("{parts}");
            }
            println!("low-rank parts pay in {chosen} of {all} weights");
        }
        Ok(found)
    }

    /// The recipe with a rate for each layer.
    fn allocate(
        &self,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        calibration: &Arc<Calibration>,
        target: f64,
        fitter: Arc<HybridFitter>,
    ) -> Result<Allocation> {
        let scope = match self.target_scope {
            TargetScope::Layers => Scope::Layers,
            TargetScope::All => Scope::All,
        };
        if !self.run.quiet && !self.run.json {
            eprintln!("measuring every layer at every rate");
        }
        let threads = self.run.threads;
        let target = RateTarget { bits: target, scope };
        let found = allocate_rates(checkpoint, recipe, calibration, target, threads, Some(fitter), &())?;
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
        Ok(found)
    }

    /// The recipe file, if there is one, with the options of the command line laid over it.
    fn recipe(&self) -> Result<Recipe> {
        let mut recipe = match (&self.recipe, self.preset) {
            (None, None) => Recipe::default(),
            (None, Some(preset)) => Preset::from(preset).recipe(),
            (Some(path), _) => {
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
        let factors = self.factors.map(|factors| match factors {
            Factors::Int8 => FactorStorage::Int8,
            Factors::F16 => FactorStorage::F16,
        });
        recipe.layers.factors = factors.or(recipe.layers.factors);
        recipe.embeddings.factors = factors.or(recipe.embeddings.factors);
        match self.hybrid {
            None | Some(Hybrid::Auto) => {}
            Some(Hybrid::Rank(rank)) => recipe.layers.rank = Some(rank),
            Some(Hybrid::Never) => {
                (recipe.layers.rank, recipe.embeddings.rank) = (None, None);
                recipe.rules.iter_mut().for_each(|rule| rule.treatment.rank = None);
            }
        }
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

    /// That of the run, and of the search for low-rank parts if there is one.
    fn peak_memory(&self, plan: &Plan, threads: usize) -> u64 {
        let search = match self.hybrid {
            Some(Hybrid::Auto) => search_memory(plan, &self.fitter(), threads),
            _ => 0,
        };
        plan.peak_memory(threads).max(search)
    }

    fn fitter(&self) -> HybridFitter {
        HybridFitter { solver: self.svd.build(), rounds: 1 }
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
                "peak_memory_bytes": self.peak_memory(plan, threads),
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
                Decision::Compress { codec, low_rank: None, .. } => codec.to_string(),
                Decision::Compress { codec, low_rank: Some(part), .. } => format!("{codec} beside {part}"),
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
            output::bytes(self.peak_memory(plan, threads))
        );
        println!("dry run: nothing was written");
    }

    fn print_report(&self, report: &CompressionReport, ranks: Option<&Ranks>) -> Result<()> {
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
                        "low_rank": group.low_rank,
                        "low_rank_bytes": group.low_rank_bytes,
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
                "hybrid": ranks.map(|ranks| &ranks.tensors),
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
            let parts: Vec<_> = report.tensors.iter().filter(|tensor| tensor.low_rank.is_some()).collect();
            if !parts.is_empty() {
                let bytes = parts.iter().map(|tensor| tensor.low_rank_bytes).sum();
                let ranks = parts.iter().filter_map(|tensor| tensor.low_rank).map(|spec| spec.rank);
                let (least, most) = ranks.fold((usize::MAX, 0), |(a, b), rank| (a.min(rank), b.max(rank)));
                let ranks = if least == most { least.to_string() } else { format!("{least} to {most}") };
                println!("low rank      {} weights, of rank {ranks}: {} of factors", parts.len(), output::bytes(bytes));
            }
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
