//! Ranks for the weights of a checkpoint.

use crate::fit::HybridFitter;
use crate::rank::{Verdict, auto_rank};
use pixel_core::archive::calibration::Calibration;
use pixel_core::archive::{ArchiveError, Checkpoint};
use pixel_core::compressor::{Progress, for_each_item};
use pixel_core::plan::{CompiledRecipe, LowRankFitter, Plan, PlanItem, Recipe, Rule, Treatment, num_workers};
use pixel_core::{FactorStorage, LowRankSpec, Shape};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};

/// What a search for ranks goes by.
#[derive(Debug, Clone)]
pub struct RankRequest {
    /// What the layers read, if it is known.
    pub calibration: Option<Arc<Calibration>>,
    /// What fits low-rank parts.
    pub fitter: HybridFitter,
}

/// What was found out for a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ranks {
    /// The recipe with a rule for each tensor that gets a low-rank part.
    #[serde(skip)]
    pub recipe: Recipe,
    /// The tensors that were looked at, by name.
    pub tensors: Vec<RankedTensor>,
}

/// What was found out for a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RankedTensor {
    /// The tensor.
    pub name: String,
    /// Its shape.
    pub shape: Shape,
    /// Which rank pays, and how that was found.
    #[serde(flatten)]
    pub verdict: Verdict,
}

impl Ranks {
    /// The tensors that get a low-rank part.
    pub fn chosen(&self) -> impl Iterator<Item = &RankedTensor> {
        self.tensors.iter().filter(|tensor| tensor.verdict.rank > 0)
    }
}

/// Looks for a low-rank part that pays ([`auto_rank`]) in every weight that `recipe` compresses and for which it does
/// not name a rank, and writes what was found into the recipe. Nothing is random: the same input gives the same recipe.
///
/// # Errors
/// [`ArchiveError`], as for a run.
pub fn choose_ranks(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    request: &RankRequest,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Ranks, ArchiveError> {
    let compiled = recipe.clone().compile()?;
    let mut plan = Plan::new(checkpoint, &compiled)?;
    if let Some(calibration) = &request.calibration {
        plan = plan.with_calibration(checkpoint, Arc::clone(calibration))?;
    }
    let open = |item: &&PlanItem| named(&compiled, &item.name).0.is_none();
    let compressed = plan.items().iter().filter(|item| item.decision.coding().is_some());
    let mut items: Vec<&PlanItem> = compressed.filter(open).collect();
    items.sort_by_key(|item| std::cmp::Reverse(item.num_weights()));
    let found = Mutex::new(Vec::new());
    for_each_item(threads, &items, checkpoint.root(), progress, |item| {
        let storage = named(&compiled, &item.name).1.unwrap_or_default();
        let tensor = look_at(checkpoint, &plan, item, storage, &request.fitter)?;
        found.lock().unwrap_or_else(PoisonError::into_inner).push((tensor, storage));
        progress.tensor_done(&item.name, item.num_weights());
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));

    let mut recipe = recipe.clone();
    let chosen = found.iter().filter(|(tensor, _)| tensor.verdict.rank > 0);
    let rules = chosen.map(|(tensor, storage)| {
        // What the first rule that matches says goes on to hold.
        let treatment = compiled.rule(&tensor.name).map(|rule| rule.treatment.clone()).unwrap_or_default();
        let treatment = Treatment { rank: Some(tensor.verdict.rank), factors: Some(*storage), ..treatment };
        Rule { pattern: format!("^{}$", regex::escape(&tensor.name)), treatment }
    });
    recipe.rules.splice(0..0, rules.collect::<Vec<_>>());
    Ok(Ranks { recipe, tensors: found.into_iter().map(|(tensor, _)| tensor).collect() })
}

/// Rank and storage that a recipe names for the tensor `name`.
fn named(recipe: &CompiledRecipe, name: &str) -> (Option<usize>, Option<FactorStorage>) {
    let class = recipe.class_treatment(name);
    let rule = recipe.rule(name).map(|rule| &rule.treatment);
    (rule.and_then(|rule| rule.rank).or(class.rank), rule.and_then(|rule| rule.factors).or(class.factors))
}

fn look_at(
    checkpoint: &Checkpoint,
    plan: &Plan,
    item: &PlanItem,
    storage: FactorStorage,
    fitter: &HybridFitter,
) -> Result<RankedTensor, ArchiveError> {
    let spec = item.decision.coding().expect("only weights that are compressed");
    // Of the part, the storage alone is read.
    let spec = spec.clone().with_low_rank(Some(LowRankSpec { rank: 1, storage }));
    let (weight, moments) = (plan.weight(checkpoint, item)?, plan.moments(&item.name)?);
    let verdict = auto_rank(&weight, &spec, moments.as_ref(), fitter.rounds, &*fitter.solver);
    let verdict = verdict.map_err(|source| plan.weight_error(checkpoint, item, source))?;
    Ok(RankedTensor { name: item.name.clone(), shape: weight.shape(), verdict })
}

/// An upper estimate of the memory in bytes that [`choose_ranks`] takes beyond the mapped input, with `threads`
/// workers, or one for each processor if that is 0, for the weights that `plan` compresses.
pub fn search_memory(plan: &Plan, fitter: &HybridFitter, threads: usize) -> u64 {
    let shapes = plan.items().iter().filter_map(|item| item.coding().map(|(_, shape)| shape));
    let bytes = |shape: Shape| fitter.peak_bytes(shape) + 4 * shape.num_weights() as u64;
    let mut bytes: Vec<u64> = shapes.map(bytes).collect();
    bytes.sort_unstable_by(|a, b| b.cmp(a));
    bytes.into_iter().take(num_workers(threads)).sum()
}
