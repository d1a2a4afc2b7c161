//! `pixel compress`: arguments become a [recipe], a recipe a plan, a plan an archive, and all of it is
//! [printed](mod@print).

mod choices;
mod print;
mod recipe;

use super::run_args::RunArgs;
use crate::output;
use crate::progress::Bar;
use anyhow::{Result, bail};
use choices::{Factors, Hybrid, PresetName, Rotate, Solver, TargetScope};
use clap::builder::PossibleValuesParser;
use pixel_core::archive::calibration::Calibration;
use pixel_core::archive::{ArchiveError, Checkpoint, write_file};
use pixel_core::codec::FAMILIES;
use pixel_core::compressor::{
    Allocation, RateRequest, RateTarget, allocate_rates, check_model_output, compress_checkpoint, sample_errors,
};
use pixel_core::plan::{Plan, PlanItem, Recipe, Remark, num_workers};
use pixel_experimental::{HybridFitter, RankRequest, Ranks, choose_ranks, search_memory};
use print::{DryRun, Finished};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Tensors that a dry run takes rows from.
const DRY_RUN_SAMPLES: usize = 12;

/// Compress a safetensors checkpoint
///
/// IN is a safetensors file or a Hugging Face directory, sharded or not. By default the matrices of layers are coded by
/// the codec `lapped` at 2 bits, embeddings and output heads by the uniform codec at 8 bits, and everything else
/// (vectors, convolutions, integers, matrices under 1024 weights, and by their names routers of experts, parameters of
/// state-space models, tables of positions, adapters and the like) is stored as it is; --dry-run shows which role each
/// tensor falls into. Options of the command line override the recipe.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The checkpoint: a directory, a .safetensors file, or an index of several
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The archive: a directory, or a file if it ends in .safetensors or .pixel
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
    /// Columns of each layer that are stored in F16 in place of codes: those with the most energy, by the calibration
    /// if there is one
    #[arg(long, value_name = "N")]
    protect: Option<usize>,
    /// A low-rank part in addition to the codes: auto (where it beats the same bits spent on codes, by trial), never,
    /// or a rank. auto and RANK hold for weights for which the recipe names none; without the option it is as the
    /// recipe says
    #[arg(long, value_name = "auto|never|RANK")]
    hybrid: Option<Hybrid>,
    /// How the factors of low-rank parts are stored
    #[arg(long, value_enum)]
    factors: Option<Factors>,
    /// What decomposes weights for low-rank parts
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
    /// Damping of error feedback, in units of the mean power of the inputs: by the amount of text if absent
    #[arg(long, requires = "calibration")]
    damping: Option<f64>,
    /// Choose a rate for each layer so that this many bits a weight are stored on average, all counted
    #[arg(long, value_name = "BITS", requires = "calibration", conflicts_with = "bits")]
    target_bits: Option<f64>,
    /// What --target-bits is the mean of
    #[arg(long, value_enum, default_value_t = TargetScope::Layers, requires = "target_bits")]
    target_scope: TargetScope,
    /// Write the recipe with the rates that --target-bits chose, and their predicted losses, and the ranks of --hybrid
    /// auto
    #[arg(long, value_name = "FILE")]
    save_recipe: Option<PathBuf>,
    /// Compress only tensors whose name matches, whatever the recipe's rules say; may be repeated. Takes the place of
    /// the recipe's own list
    #[arg(long, value_name = "REGEX")]
    include: Vec<String>,
    /// Store tensors whose name matches as they are, whatever the recipe says; may be repeated. Added to the recipe's
    /// own list
    #[arg(long, value_name = "REGEX")]
    exclude: Vec<String>,
    /// Seed of the rotations
    #[arg(long)]
    seed: Option<u64>,
    /// Write no weight: print the exact size, the peak memory, and the error of sampled rows
    #[arg(long)]
    dry_run: bool,
    /// Print the recipe that results from file and options, and stop
    #[arg(long)]
    print_recipe: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// What is known before anything is compressed.
struct Inputs {
    checkpoint: Checkpoint,
    calibration: Option<Arc<Calibration>>,
    fitter: HybridFitter,
}

/// A recipe in which everything is chosen.
struct Chosen {
    recipe: Recipe,
    /// The recipe as `--save-recipe` writes it.
    toml: String,
    /// What `--hybrid auto` found.
    ranks: Option<Ranks>,
}

impl Args {
    pub(crate) fn run(self) -> Result<ExitCode> {
        if self.save_recipe.is_some() && self.target_bits.is_none() && self.hybrid != Some(Hybrid::Auto) {
            bail!(
                "--save-recipe writes what --target-bits or --hybrid auto found: give one of them, or --print-recipe"
            );
        }
        let recipe = self.recipe()?;
        if self.print_recipe {
            print!("{}", recipe.to_toml());
            return Ok(ExitCode::SUCCESS);
        }
        self.check_outputs()?;
        let inputs = Inputs {
            checkpoint: Checkpoint::open(&self.input)?,
            calibration: self.calibration.as_deref().map(Calibration::open).transpose()?.map(Arc::new),
            fitter: HybridFitter { solver: self.svd.build(), rounds: 1 },
        };
        // What is chosen below is written as rules for every tensor, in front of those that were asked for.
        let asked = self.plan(&inputs, recipe.clone())?;
        if !self.run.quiet {
            output::remarks(&inputs.checkpoint);
            self.print_remarks(&asked);
        }
        self.check_that_something_is_coded(&asked)?;
        if let Some(output) = self.output.as_deref().filter(|_| !self.dry_run) {
            let calibration = inputs.calibration.as_deref().map(Calibration::path);
            check_model_output(&inputs.checkpoint, calibration, output, self.run.options().overwrite)?;
        }
        let Chosen { recipe, toml, ranks } = self.choose(&inputs, recipe)?;
        let plan = self.plan(&inputs, recipe)?;
        if let Some(path) = &self.save_recipe {
            write_file(path, toml.as_bytes(), self.run.options().overwrite)?;
        }
        match (self.dry_run, &self.output) {
            (true, _) => self.dry_run(&inputs, &plan)?,
            (false, Some(output)) => {
                let weights = plan.items().iter().map(PlanItem::num_weights).sum();
                let bar = Bar::new(weights, !self.run.prints_text())?;
                let report = compress_checkpoint(&inputs.checkpoint, &plan, output, self.run.options(), &bar)?;
                bar.finish();
                Finished { report: &report, ranks: ranks.as_ref() }.print(&self.run)?;
            }
            (false, None) => bail!("OUT is missing"),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Refuses outputs that are in the way of each other or of what exists, before anything is measured for them.
    fn check_outputs(&self) -> Result<()> {
        let overwrite = self.run.options().overwrite;
        let output = self.output.as_deref().filter(|_| !self.dry_run);
        for path in output.into_iter().chain(self.save_recipe.as_deref()) {
            if !overwrite && path.symlink_metadata().is_ok() {
                return Err(ArchiveError::OutputExists { path: path.to_owned() }.into());
            }
        }
        if let Some(path) = self.save_recipe.as_deref().filter(|path| path.symlink_metadata().is_ok()) {
            let is_recipe = std::fs::read_to_string(path).is_ok_and(|text| Recipe::from_toml(&text).is_ok());
            anyhow::ensure!(is_recipe, "--save-recipe {}: the file is no recipe, and is not replaced", path.display());
        }
        let recipes = [("--recipe", &self.recipe), ("--save-recipe", &self.save_recipe)];
        for (option, recipe) in recipes.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?))) {
            if let Some(output) = output
                && std::path::absolute(recipe)?.starts_with(std::path::absolute(output)?)
            {
                bail!("{option} {}: it lies inside the output {}", recipe.display(), output.display());
            }
        }
        Ok(())
    }

    /// Chooses ranks and rates, where the arguments ask for it.
    fn choose(&self, inputs: &Inputs, mut recipe: Recipe) -> Result<Chosen> {
        let mut ranks = None;
        if self.hybrid == Some(Hybrid::Auto) {
            let found = self.choose_ranks(inputs, &recipe)?;
            recipe = found.recipe.clone();
            ranks = Some(found);
        }
        let mut toml = recipe.to_toml();
        if let (Some(bits), Some(calibration)) = (self.target_bits, &inputs.calibration) {
            let request = RateRequest {
                calibration: Arc::clone(calibration),
                target: RateTarget { bits, scope: self.target_scope.into() },
                fitter: Some(Arc::new(inputs.fitter.clone())),
            };
            let found = self.choose_rates(inputs, &recipe, &request)?;
            (toml, recipe) = (found.to_toml(), found.recipe);
        }
        Ok(Chosen { recipe, toml, ranks })
    }

    /// The recipe with a rank for each weight for which one pays.
    fn choose_ranks(&self, inputs: &Inputs, recipe: &Recipe) -> Result<Ranks> {
        if self.run.prints_text() {
            eprintln!("looking for low-rank parts that pay");
        }
        let request = RankRequest { calibration: inputs.calibration.clone(), fitter: inputs.fitter.clone() };
        let found = choose_ranks(&inputs.checkpoint, recipe, &request, self.run.threads, &())?;
        if self.run.prints_text() {
            print::ranks(&found);
        }
        Ok(found)
    }

    /// The recipe with a rate for each layer.
    fn choose_rates(&self, inputs: &Inputs, recipe: &Recipe, request: &RateRequest) -> Result<Allocation> {
        if self.run.prints_text() {
            eprintln!("measuring every layer at every rate");
        }
        let found = allocate_rates(&inputs.checkpoint, recipe, request, self.run.threads, &())?;
        if self.run.prints_text() {
            print::rates(&found);
        }
        Ok(found)
    }

    fn plan(&self, inputs: &Inputs, recipe: Recipe) -> Result<Plan> {
        let plan = Plan::new(&inputs.checkpoint, &recipe.compile()?)?;
        let mut plan = plan.with_low_rank_fitter(Arc::new(inputs.fitter.clone()));
        if let Some(calibration) = &inputs.calibration {
            plan = plan.with_calibration(&inputs.checkpoint, Arc::clone(calibration))?;
        }
        Ok(plan)
    }

    fn check_that_something_is_coded(&self, plan: &Plan) -> Result<()> {
        if plan.items().iter().all(|item| item.decision.coding().is_none()) {
            let kept = print::kept(plan.items().iter().map(|item| (&item.decision, item.role)));
            bail!(
                "{}: no tensor would be compressed ({kept}); see --include, --exclude and the recipe",
                self.input.display()
            );
        }
        Ok(())
    }

    /// Says what the plan does otherwise than was meant, perhaps. Presets have rules for many families, of which a
    /// model has the names of one.
    fn print_remarks(&self, plan: &Plan) {
        let of_preset = |remark: &&Remark| match remark {
            Remark::Unmatched { place, .. } | Remark::Shadowed { place, .. } => {
                self.preset.is_some() && place.starts_with("rule")
            }
            _ => false,
        };
        for remark in plan.remarks().iter().filter(|remark| !of_preset(remark)) {
            eprintln!("note: {remark}");
        }
    }

    fn dry_run(&self, inputs: &Inputs, plan: &Plan) -> Result<()> {
        // That of the run, and of the search for low-rank parts if there is one.
        let search = match self.hybrid {
            Some(Hybrid::Auto) => search_memory(plan, &inputs.fitter, self.run.threads),
            _ => 0,
        };
        let dry_run = DryRun {
            input: &self.input,
            checkpoint: &inputs.checkpoint,
            plan,
            samples: &sample_errors(&inputs.checkpoint, plan, DRY_RUN_SAMPLES)?,
            peak_memory: plan.peak_memory(self.run.threads).max(search),
            workers: num_workers(self.run.threads),
        };
        dry_run.print(&self.run);
        Ok(())
    }
}
