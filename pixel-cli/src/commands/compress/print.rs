//! What `pixel compress` prints: what was chosen, what would be done, what was done.

use super::super::run_args::RunArgs;
use crate::output::{self, table};
use anyhow::Result;
use pixel_core::archive::Checkpoint;
use pixel_core::compressor::{Allocation, CompressionReport, GroupReport, Sample, TensorReport};
use pixel_core::math::metrics::{ErrorSums, bits_per_weight};
use pixel_core::plan::{Decision, KeepReason, Plan, PlanItem, Role};
use pixel_experimental::Ranks;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The ranks that `--hybrid auto` tried.
pub(super) fn ranks(found: &Ranks) {
    let columns = ["low-rank part", "rank", "extra bits", "loss ratio", "break-even", "verdict"];
    let mut parts = table(&columns, 1);
    for tensor in &found.tensors {
        let verdict = &tensor.verdict;
        let Some(measured) = verdict.measured else { continue };
        parts.add_row([
            tensor.name.clone(),
            verdict.candidate.to_string(),
            format!("{:.4}", verdict.extra_bits),
            format!("{measured:.4}"),
            format!("{:.4}", verdict.break_even),
            if verdict.rank > 0 { "kept" } else { "left out" }.to_owned(),
        ]);
    }
    if parts.row_count() > 0 {
        println!("{parts}");
    }
    println!("low-rank parts pay in {} of {} weights", found.chosen().count(), found.tensors.len());
}

/// The rates that `--target-bits` chose.
pub(super) fn rates(found: &Allocation) {
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
        let more = 100.0 * (loss / found.loss - 1.0);
        format!("; one rate for all at that size: {}, {more:+.0} %", output::error(loss))
    });
    println!("mean {:.4} bits, predicted loss {}{uniform}", found.mean_bits, output::error(found.loss));
}

/// What a run would do.
pub(super) struct DryRun<'a> {
    pub(super) input: &'a Path,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) plan: &'a Plan,
    pub(super) samples: &'a [Sample],
    /// An upper estimate in bytes, the mapped input apart.
    pub(super) peak_memory: u64,
    pub(super) workers: usize,
}

impl DryRun<'_> {
    pub(super) fn print(&self, run: &RunArgs) {
        if run.json {
            println!("{:#}", self.json());
        } else if run.prints_text() {
            self.print_text();
        }
    }

    fn json(&self) -> Value {
        let sample = |sample: &Sample| {
            json!({
                "tensor": sample.name,
                "codec": sample.codec,
                "rows": sample.rows,
                "relative_mse": sample.error.relative_mse(),
                "output_loss": sample.output.map(|sums| sums.relative_mse()),
            })
        };
        let tensor = |item: &PlanItem| {
            json!({
                "name": item.name,
                "role": item.role,
                "shape": item.shape,
                "treatment": treatment(&item.decision),
                "stored_bytes": item.stored_bytes,
            })
        };
        json!({
            "tensors": self.plan.items().iter().map(tensor).collect::<Vec<_>>(),
            "source_file_bytes": self.checkpoint.file_bytes(),
            "weight_file_bytes": self.plan.stored_bytes(),
            "peak_memory_bytes": self.peak_memory,
            "threads": self.workers,
            "samples": self.samples.iter().map(sample).collect::<Vec<_>>(),
        })
    }

    fn print_text(&self) {
        let (tensors, shards) = (self.plan.items().len(), self.checkpoint.shards().len());
        println!("{}: {tensors} tensors in {shards} file(s)", self.input.display());
        self.print_sizes();
        self.print_samples();
        let (from, to) = (self.checkpoint.file_bytes(), self.plan.stored_bytes());
        println!("weight files: {} -> {}", output::bytes(from), output::bytes(to));
        let (workers, memory) = (self.workers, output::bytes(self.peak_memory));
        println!("peak memory beyond the mapped input, {workers} worker(s): at most {memory}");
        println!("dry run: no weight was written");
    }

    fn print_sizes(&self) {
        let mut groups: BTreeMap<(Role, String), (usize, u64, u64)> = BTreeMap::new();
        for item in self.plan.items() {
            let group = groups.entry((item.role, treatment(&item.decision))).or_default();
            *group = (group.0 + 1, group.1 + item.num_weights(), group.2 + item.stored_bytes);
        }
        let mut sizes = table(&["role", "treatment", "tensors", "weights", "bytes", "bits per weight"], 2);
        for ((role, treatment), (tensors, weights, bytes)) in groups {
            let bits = format!("{:.3}", bits_per_weight(bytes, weights));
            sizes.add_row([
                role.to_string(),
                treatment,
                tensors.to_string(),
                weights.to_string(),
                bytes.to_string(),
                bits,
            ]);
        }
        println!("{sizes}");
    }

    fn print_samples(&self) {
        let mut errors = table(&["sampled tensor", "codec", "rows", "relative MSE", "output loss"], 2);
        let mut by_codec: BTreeMap<&str, ErrorSums> = BTreeMap::new();
        for sample in self.samples {
            errors.add_row([
                sample.name.clone(),
                sample.codec.clone(),
                sample.rows.to_string(),
                output::error(sample.error.relative_mse()),
                sample.output.map_or("-".to_owned(), |sums| output::error(sums.relative_mse())),
            ]);
            *by_codec.entry(&sample.codec).or_default() += sample.error;
        }
        println!("{errors}");
        for (codec, error) in by_codec {
            println!("{codec}: relative MSE {} over the samples", output::error(error.relative_mse()));
        }
    }
}

fn treatment(decision: &Decision) -> String {
    match decision {
        Decision::Keep(reason) => format!("kept ({reason})"),
        Decision::Compress(spec) => match spec.low_rank {
            None => spec.codec.to_string(),
            Some(part) => format!("{}, {part}", spec.codec),
        },
    }
}

/// The tensors that are kept, by the reason: `8 for the role router, 2 small`.
pub(super) fn kept<'a>(tensors: impl Iterator<Item = (&'a Decision, Role)>) -> String {
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (decision, role) in tensors {
        match decision {
            Decision::Keep(KeepReason::Role) => *reasons.entry(format!("for the role {role}")).or_default() += 1,
            Decision::Keep(reason) => *reasons.entry(reason.to_string()).or_default() += 1,
            Decision::Compress(_) => {}
        }
    }
    reasons.into_iter().map(|(reason, tensors)| format!("{tensors} {reason}")).collect::<Vec<_>>().join(", ")
}

/// What a run has done.
pub(super) struct Finished<'a> {
    pub(super) report: &'a CompressionReport,
    /// What `--hybrid auto` found.
    pub(super) ranks: Option<&'a Ranks>,
}

impl Finished<'_> {
    pub(super) fn print(&self, run: &RunArgs) -> Result<()> {
        if run.json {
            println!("{:#}", self.json()?);
        } else if run.prints_text() {
            self.print_text();
        }
        Ok(())
    }

    fn json(&self) -> Result<Value> {
        let report = self.report;
        let group = |group: &GroupReport| {
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
        };
        Ok(json!({
            "groups": report.groups().iter().map(group).collect::<Vec<_>>(),
            "compression_ratio": report.compression_ratio(),
            "compressed_bits_per_weight": report.compressed_bits_per_weight(),
            "total_bits_per_weight": report.total_bits_per_weight(),
            "relative_mse": report.relative_mse(),
            "hybrid": self.ranks.map(|ranks| &ranks.tensors),
            "report": serde_json::to_value(report)?,
        }))
    }

    fn print_text(&self) {
        let report = self.report;
        self.print_groups();
        self.print_low_rank();
        self.print_roles();
        for tensor in report.tensors.iter().filter(|tensor| tensor.damping_retries > 0) {
            let (retries, damping) = (tensor.damping_retries, tensor.damping.unwrap_or_default());
            println!("damping       {}: doubled {retries} times, to {damping:.3}", tensor.name);
        }
        let (from, to) = (output::bytes(report.source_file_bytes), output::bytes(report.weight_file_bytes));
        println!("weight files  {from} -> {to}, {:.2}×", report.compression_ratio());
        if report.side_file_bytes > 0 {
            println!("other files   {}", output::bytes(report.side_file_bytes));
        }
        for file in &report.copied_weights {
            println!("copied        {} (weights of a module of its own, as they are)", file.display());
        }
        for file in &report.left_out {
            println!("not copied    {} (weights in another form, or a link)", file.display());
        }
    }

    fn print_groups(&self) {
        let columns = ["treatment", "tensors", "weights", "bytes", "bits/weight", "relative MSE", "output loss"];
        let mut groups = table(&columns, 1);
        for group in self.report.groups() {
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
    }

    /// The matrices that would be coded but for what they are for.
    fn print_roles(&self) {
        let mut roles: BTreeMap<Role, usize> = BTreeMap::new();
        for tensor in self.report.tensors.iter().filter(|tensor| tensor.kept == Some(KeepReason::Role)) {
            *roles.entry(tensor.role).or_default() += 1;
        }
        let roles: Vec<String> = roles.into_iter().map(|(role, tensors)| format!("{tensors} {role}")).collect();
        if !roles.is_empty() {
            println!("kept          for their role: {}", roles.join(", "));
        }
    }

    fn print_low_rank(&self) {
        let parts = || self.report.tensors.iter().filter(|tensor| tensor.low_rank.is_some());
        let ranks = || parts().filter_map(|tensor| tensor.low_rank).map(|spec| spec.rank);
        if let (Some(least), Some(most)) = (ranks().min(), ranks().max()) {
            let bytes = output::bytes(parts().map(|tensor: &TensorReport| tensor.low_rank_bytes).sum());
            let ranks = if least == most { least.to_string() } else { format!("{least} to {most}") };
            println!("low rank      {} weights, of rank {ranks}: {bytes} of factors", parts().count());
        }
    }
}
