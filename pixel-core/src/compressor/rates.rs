//! A rate for each tensor under a mean: measured losses, a Lagrangian, and a recipe with the result.

use super::progress::Progress;
use super::workers;
use crate::archive::calibration::{Calibration, Weighting};
use crate::archive::{ArchiveError, Checkpoint};
use crate::codec::CodecSpec;
use crate::encode::{Encoder, PreparedInputs, largest_columns};
use crate::error::{ConfigError, NumberRange, ShapeError};
use crate::math::metrics::bits_per_weight;
use crate::matrix::{Matrix, Shape};
use crate::plan::allocation::{Choice, allocate};
use crate::plan::{LowRankFitter, Plan, PlanItem, Recipe, Rule, Treatment, weight_error};
use serde::Serialize;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of a tensor that are coded at every rate: four bands of the tallest tile.
const SAMPLE_ROWS: usize = 128;

/// What the mean is taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The weights of layers that are compressed: their codes, scales and padding.
    #[default]
    Layers,
    /// Everything in the weight files: embeddings, tensors stored unchanged, headers.
    All,
}

/// The mean that an allocation has to keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateTarget {
    /// Bits per weight, everything stored.
    pub bits: f64,
    /// What they are the mean of.
    pub scope: Scope,
}

/// The inputs of an allocation.
#[derive(Debug, Clone)]
pub struct RateRequest {
    /// The statistics of the layers' inputs.
    pub calibration: Arc<Calibration>,
    /// The mean to keep.
    pub target: RateTarget,
    /// Finds low-rank parts, if the recipe asks for any: their bytes count, and rates are measured on the residuals.
    pub fitter: Option<Arc<dyn LowRankFitter>>,
}

/// The result of an allocation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Allocation {
    /// The recipe with a rule for each tensor whose rate was chosen.
    #[serde(skip)]
    pub recipe: Recipe,
    /// The tensors whose rates were chosen, by name.
    pub tensors: Vec<AllocatedTensor>,
    /// Bits per weight over the scope, everything stored for it.
    pub mean_bits: f64,
    /// The sum of the tensors' losses.
    pub loss: f64,
    /// The same if one rate for all took as many bytes, interpolated between the available rates.
    pub uniform_loss: Option<f64>,
}

/// The rate of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AllocatedTensor {
    /// The tensor.
    pub name: String,
    /// The codec with its rate.
    pub codec: String,
    /// Weights of the tensor.
    pub weights: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// The predicted loss: half the error of the outputs weighted by gradients where the calibration is so weighted, in
    /// nats a token for a language model; the relative error of the outputs times the number of weights otherwise.
    pub loss: f64,
}

/// The choices of a tensor.
struct Measured {
    item: PlanItem,
    specs: Vec<CodecSpec>,
    choices: Vec<Choice>,
}

/// Chooses a rate for each layer that `recipe` compresses and for which no rule names a codec or a rate, so that the
/// sum of the losses that the calibration predicts is least under the mean of the request.
///
/// Every rate of the layers' codec that its options allow is tried on rows of every tensor, with error feedback;
/// nothing is random, so the same input gives the same recipe.
///
/// # Errors
/// [`ArchiveError::Config`] for a mean that is no positive number; [`ArchiveError::Budget`] if the smallest rates
/// exceed it; [`ArchiveError`] as for a run.
pub fn allocate_rates(
    checkpoint: &Checkpoint,
    recipe: &Recipe,
    request: &RateRequest,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Allocation, ArchiveError> {
    let RateRequest { calibration, target: RateTarget { bits: target_bits, scope }, fitter } = request;
    ConfigError::range("target_bits", *target_bits, NumberRange::above(0.0, f64::MAX))?;
    let compiled = recipe.clone().compile()?;
    let mut plan = Plan::new(checkpoint, &compiled)?.with_calibration(checkpoint, Arc::clone(calibration))?;
    if let Some(fitter) = fitter {
        plan = plan.with_low_rank_fitter(Arc::clone(fitter));
    }
    let is_layer = |item: &&PlanItem| item.decision.coding().is_some() && !compiled.is_embedding(&item.name);
    let layers: Vec<&PlanItem> = plan.items().iter().filter(is_layer).collect();
    let open = |name: &str| {
        let names_rate = |rule: &Rule| rule.treatment.codec.is_some() || rule.treatment.bits.is_some();
        !compiled.rule(name).is_some_and(names_rate)
    };
    let mut free: Vec<&PlanItem> =
        layers.iter().copied().filter(|item| plan.has_feedback(item) && open(&item.name)).collect();
    free.sort_by_key(|item| std::cmp::Reverse(item.num_weights()));

    let measured = Mutex::new(Vec::new());
    workers::for_each_item(threads, &free, checkpoint.root(), progress, |item| {
        let found = measure(checkpoint, &plan, calibration, item)?;
        measured.lock().unwrap_or_else(PoisonError::into_inner).push(found);
        progress.tensor_done(&item.name, item.num_weights());
        Ok(())
    })?;
    let mut measured = measured.into_inner().unwrap_or_else(PoisonError::into_inner);
    measured.sort_by(|a, b| a.item.name.cmp(&b.item.name));

    let free_bytes: u64 = free.iter().map(|item| item.stored_bytes).sum();
    let (weights, all_bytes) = match scope {
        Scope::Layers => (layers.iter().map(|i| i.num_weights()).sum(), layers.iter().map(|i| i.stored_bytes).sum()),
        Scope::All => (plan.items().iter().map(PlanItem::num_weights).sum::<u64>(), plan.stored_bytes()),
    };
    let fixed_bytes = all_bytes - free_bytes;
    let budget = (*target_bits * weights as f64 / 8.0).floor() as u64;
    let choices: Vec<Vec<Choice>> = measured.iter().map(|tensor| tensor.choices.clone()).collect();
    let picks = budget.checked_sub(fixed_bytes).and_then(|budget| allocate(&choices, budget));
    let picks = picks.ok_or_else(|| {
        let smallest = choices.iter().filter_map(|c| c.iter().map(|c| c.bytes).min()).sum::<u64>() + fixed_bytes;
        ArchiveError::Budget { target: *target_bits, smallest: bits_per_weight(smallest, weights) }
    })?;
    let chosen = || picks.iter().zip(&choices).map(|(&pick, choices)| choices[pick]);
    let bytes: u64 = chosen().map(|choice| choice.bytes).sum();
    let mut recipe = recipe.clone();
    let rules = picks.iter().zip(&measured).map(|(&pick, tensor)| {
        // The first matching rule stays in effect.
        let treatment = compiled.rule(&tensor.item.name).map(|rule| rule.treatment.clone()).unwrap_or_default();
        let treatment = Treatment { bits: Some(tensor.specs[pick].bits), ..treatment };
        Rule { pattern: format!("^{}$", regex::escape(&tensor.item.name)), treatment }
    });
    let rules: Vec<Rule> = rules.collect();
    recipe.rules.retain(|old| rules.iter().all(|new| new.pattern != old.pattern));
    recipe.rules.splice(0..0, rules);
    let tensors = picks.iter().zip(&measured).map(|(&pick, tensor)| AllocatedTensor {
        name: tensor.item.name.clone(),
        codec: tensor.specs[pick].to_string(),
        weights: tensor.item.num_weights(),
        bytes: tensor.choices[pick].bytes,
        loss: tensor.choices[pick].loss,
    });
    Ok(Allocation {
        recipe,
        tensors: tensors.collect(),
        mean_bits: bits_per_weight(fixed_bytes + bytes, weights),
        loss: chosen().map(|choice| choice.loss).sum(),
        uniform_loss: uniform_loss(&measured, bytes),
    })
}

impl Allocation {
    /// The recipe as TOML, with what was predicted for each tensor in comments.
    pub fn to_toml(&self) -> String {
        let mut text = format!(
            "# Rates chosen for a mean of {:.4} bits a weight; predicted loss {:.6}{}.\n",
            self.mean_bits,
            self.loss,
            self.uniform_loss.map_or(String::new(), |loss| format!(", {loss:.6} with one rate for all"))
        );
        const RULE: &str = "[[rule]]\n";
        let recipe = self.recipe.to_toml();
        let mut parts = recipe.split(RULE);
        text += parts.next().unwrap_or_default();
        // The rules of the tensors come first, in their order.
        for (i, rule) in parts.enumerate() {
            if let Some(tensor) = self.tensors.get(i) {
                let share = 100.0 * tensor.loss / self.loss;
                text += &format!("# predicted loss {:.3e}, {share:.1} % of all\n", tensor.loss);
            }
            text += RULE;
            text += rule;
        }
        text
    }
}

/// The loss of a tensor at every rate of its codec that its options allow.
fn measure(
    checkpoint: &Checkpoint,
    plan: &Plan,
    calibration: &Calibration,
    item: &PlanItem,
) -> Result<Measured, ArchiveError> {
    let (spec, shape) = item.coding().expect("only compressed tensors are measured");
    let weight = plan.weight(checkpoint, item)?;
    let moments = calibration.moments(&item.name)?.expect("only calibrated tensors are measured");
    let whole = moments.output_power(weight.as_ref());
    // Chosen as for the compressed weight: before a low-rank part is extracted.
    let columns = largest_columns(weight.as_ref(), Some(&moments), spec.protect);
    let weight = plan.residual(checkpoint, item, weight)?;
    let sample = spread_rows(&weight).map_err(weight_error(checkpoint, item))?;
    let inputs = PreparedInputs::new(moments, spec, columns);
    let power = inputs.output_power(weight).map_err(weight_error(checkpoint, item))?;
    let (mut specs, mut choices) = (Vec::new(), Vec::new());
    for &bits in spec.codec.family()?.rates() {
        let spec = spec.with_bits(bits);
        // A rate that the options forbid is skipped; those of the request's own rate have been checked.
        if spec.codec.build().is_err() {
            continue;
        }
        let bytes = spec.stored_bytes(shape)?;
        let codes = spec.clone().with_low_rank(None);
        let coded = Encoder::new(&codes).with_inputs(&inputs).encode(sample.clone());
        let (_, outcome) = coded.map_err(weight_error(checkpoint, item))?;
        // Rows whose outputs are zero say nothing about the others: the error of the weights is then used.
        let output = outcome.output.map(|output| output.sums).filter(|sums| sums.power > 0.0);
        let relative = output.unwrap_or(outcome.weight).relative_mse();
        let loss = match calibration.description().weighting {
            _ if power == 0.0 || whole == 0.0 => 0.0,
            // Of the whole weight's outputs, also where the codes hold only the residual of a low-rank part.
            Weighting::Uniform => relative * power / whole * item.num_weights() as f64,
            Weighting::Gradient => 0.5 * relative * power,
        };
        specs.push(spec.codec);
        choices.push(Choice { bytes, loss });
    }
    Ok(Measured { item: item.clone(), specs, choices })
}

/// Some rows of a weight, evenly spread.
fn spread_rows(weight: &Matrix) -> Result<Matrix, ShapeError> {
    let (m, n) = (weight.shape().d_output(), weight.shape().d_input());
    let rows = m.min(SAMPLE_ROWS);
    let data = (0..rows).flat_map(|i| weight.as_ref().row(i * m / rows)).copied().collect();
    Matrix::new(Shape::new(rows, n)?, data)
}

/// The loss of one rate for all at `bytes`, its logarithm interpolated between the rates below and above that every
/// tensor has; `None` outside.
fn uniform_loss(tensors: &[Measured], bytes: u64) -> Option<f64> {
    let rates: Vec<f64> = tensors.first()?.specs.iter().map(|spec| spec.bits).collect();
    let sums = |bits: &f64| {
        let mut sums = (0, 0.0);
        for tensor in tensors {
            let choice = tensor.choices[tensor.specs.iter().position(|spec| spec.bits == *bits)?];
            sums = (sums.0 + choice.bytes, sums.1 + choice.loss);
        }
        Some((sums.0 as f64, sums.1.ln()))
    };
    let points: Vec<(f64, f64)> = rates.iter().filter_map(sums).collect();
    let bytes = bytes as f64;
    let [(x0, y0), (x1, y1)] = *points.windows(2).find(|w| w[0].0 <= bytes && bytes <= w[1].0)? else { return None };
    Some((y0 + (y1 - y0) * (bytes - x0) / (x1 - x0).max(1.0)).exp())
}
