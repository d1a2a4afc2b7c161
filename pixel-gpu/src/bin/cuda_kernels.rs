//! The CUDA kernels of products, on a machine without a GPU: their machine code, what it takes, and what a device could
//! do with it. Every time here is an estimate: nothing runs.

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use pixel_core::CodecSpec;
use pixel_gpu::assembler::{Resources, Tools};
use pixel_gpu::cases::{self, Case, ShapeName};
use pixel_gpu::record::{self, Launch, Recording};
use pixel_gpu::roof::{self, Estimate};
use pixel_gpu::sass::{Code, Counts};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Growth of a kernel that is no longer taken for noise of a compiler.
const GROWTH: f64 = 1.05;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// The compute capabilities to assemble for.
    #[arg(long, value_delimiter = ',', default_value = "90")]
    sm: Vec<u32>,
    /// Codecs with their rates, such as `lapped:2`; all, if none is given.
    #[arg(long, value_delimiter = ',')]
    codecs: Vec<CodecSpec>,
    /// Shapes of weights, outputs first.
    #[arg(long, value_delimiter = ',', default_value = "4096x4096,4096x11008,576x1536")]
    shapes: Vec<ShapeName>,
    /// Rows of activations.
    #[arg(long, value_delimiter = ',', default_value = "1,8,128")]
    batches: Vec<usize>,
    /// The folder of `ptxas` and `nvdisasm`; otherwise they are looked for where programs are.
    #[arg(long)]
    tools: Option<PathBuf>,
    /// What kernels may take: one that spills more, or takes 5 % more registers or instructions, is an error.
    #[arg(long)]
    budget: Option<PathBuf>,
    /// Writes such a file.
    #[arg(long, conflicts_with = "budget")]
    write_budget: Option<PathBuf>,
    /// Keeps the kernels' PTX and machine code in this folder.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Runs the cases on the driver that records them; the program calls itself so.
    #[arg(long, hide = true)]
    recorded: bool,
}

/// The kernels of `pixel-core`. Burn's own, which a product of many rows also takes, are tuned as a program runs: which
/// of them run without a device says nothing.
const KERNELS: [&str; 8] = ["finish", "levels", "linear", "lookup", "nibble", "panel", "prepare", "tiles"];

/// The launches of a kernel in a case, for one compute capability.
struct Row {
    case: Case,
    sm: u32,
    kernel: String,
    launches: Vec<Launch>,
    resources: Resources,
    instructions: usize,
    total: Counts,
    /// Loops that are counted once, since their code does not tell how often they run.
    unknown: usize,
    bytes: usize,
}

/// What a kernel may take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Budget {
    registers: usize,
    /// Bytes that a thread spills.
    spills: usize,
    /// Instructions of all threads for a weight.
    per_weight: f64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let codecs = if arguments.codecs.is_empty() { cases::all_codecs() } else { arguments.codecs.clone() };
    let cases = cases::all(&codecs, &arguments.shapes, &arguments.batches)?;
    if arguments.recorded {
        return run(&cases);
    }
    let tools = Tools::find(arguments.tools.as_deref())?;
    let mut rows = Vec::new();
    for &sm in &arguments.sm {
        let folder = tempfile::tempdir().context("a folder for the record")?;
        let kept = arguments.keep.as_ref().map(|folder| folder.join(format!("sm_{sm}")));
        let folder = kept.as_deref().unwrap_or(folder.path());
        ensure!(!folder.join("calls.txt").exists(), "{} holds a record already", folder.display());
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut again: Vec<String> = env::args().skip(1).collect();
        again.push("--recorded".to_owned());
        let recording = record::record(&again, sm, folder)?;
        rows.extend(analyse(&recording, sm, &tools)?);
    }
    print(&rows)?;
    if let Some(path) = &arguments.write_budget {
        let budget = budgets(&rows);
        // A kernel a line, so that differences can be read.
        let lines = budget.iter().map(|(name, budget)| Ok(format!("  {name:?}: {}", serde_json::to_string(budget)?)));
        let text = format!("{{\n{}\n}}\n", lines.collect::<Result<Vec<_>>>()?.join(",\n"));
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    match &arguments.budget {
        Some(path) => check(&rows, path),
        None => Ok(()),
    }
}

/// Runs the cases, with a mark before each.
fn run(cases: &[Case]) -> Result<()> {
    ensure!(record::is_recorded(), "--recorded is for the recording driver alone");
    let device = Device::cuda(0);
    for case in cases {
        // Tensors of zeros are made before the mark; what is between is the product.
        let product = case.prepare(&device)?;
        device.sync().map_err(|error| anyhow::anyhow!("{case}: {error:?}"))?;
        record::mark(&case.to_string())?;
        drop(product.run());
        device.sync().map_err(|error| anyhow::anyhow!("{case}: {error:?}"))?;
        record::mark("")?;
    }
    Ok(())
}

fn analyse(recording: &Recording, sm: u32, tools: &Tools) -> Result<Vec<Row>> {
    let sections: Vec<_> = recording.sections.iter().filter(|section| !section.name.is_empty()).collect();
    let is_ours = |kernel: &usize| KERNELS.contains(&short(&recording.kernels[*kernel].name).as_str());
    let launches = sections.iter().flat_map(|section| &section.launches);
    let used: BTreeSet<usize> = launches.map(|launch| launch.kernel).filter(is_ours).collect();
    let assembled = used.par_iter().map(|&kernel| {
        let (resources, listing) = tools.assemble(&recording.kernels[kernel].ptx)?;
        Ok((kernel, (resources, Code::parse(&listing))))
    });
    let assembled: HashMap<usize, (Resources, Code)> = assembled.collect::<Result<_>>()?;
    let mut rows = Vec::new();
    for section in sections {
        let case: Case = section.name.parse()?;
        ensure!(!section.launches.is_empty(), "{case}: nothing was launched");
        let kernels: BTreeSet<usize> = section.launches.iter().map(|launch| launch.kernel).filter(is_ours).collect();
        for kernel in kernels {
            let (resources, code) = &assembled[&kernel];
            rows.push(Row {
                sm,
                kernel: short(&recording.kernels[kernel].name),
                launches: section.launches.iter().filter(|launch| launch.kernel == kernel).copied().collect(),
                resources: *resources,
                instructions: code.len(),
                total: code.total(1.0),
                unknown: code.unknown(),
                bytes: case.weight_bytes()?,
                case: case.clone(),
            });
        }
    }
    Ok(rows)
}

/// The name that a kernel has in its source.
fn short(name: &str) -> String {
    name.split("_kernel").next().unwrap_or(name).to_owned()
}

impl Row {
    fn name(&self) -> String {
        format!("sm_{} {} {}", self.sm, self.case, self.kernel)
    }

    fn budget(&self) -> Budget {
        let Resources { registers, spills, .. } = self.resources;
        Budget { registers, spills, per_weight: (self.per_weight() * 1000.0).round() / 1000.0 }
    }

    fn per_weight(&self) -> f64 {
        let warps: usize = self.launches.iter().map(|launch| launch.threads().div_ceil(32) * launch.blocks()).sum();
        self.total.all * (warps * 32) as f64 / self.case.shape.num_weights() as f64
    }

    fn estimate(&self) -> Result<Estimate> {
        let device = roof::Device::of(self.sm).with_context(|| format!("no device of sm_{} is known", self.sm))?;
        Ok(device.estimate(&self.launches, &self.total, self.bytes))
    }
}

fn print(rows: &[Row]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "sm",
        "codec",
        "weight",
        "rows",
        "kernel",
        "launches",
        "blocks",
        "threads",
        "registers",
        "spills",
        "shared KB",
        "warps of 64",
        "instructions",
        "a weight",
        "bytes a weight",
        "of the roof, estimated",
        "limit",
    ]);
    for row in rows {
        let device = roof::Device::of(row.sm).with_context(|| format!("no device of sm_{} is known", row.sm))?;
        let estimate = row.estimate()?;
        let launch = row.launches.first().context("a kernel that is not launched")?;
        table.add_row([
            row.sm.to_string(),
            row.case.codec.to_string(),
            ShapeName(row.case.shape).to_string(),
            row.case.batch.to_string(),
            row.kernel.clone(),
            row.launches.len().to_string(),
            launch.blocks().to_string(),
            launch.threads().to_string(),
            row.resources.registers.to_string(),
            row.resources.spills.to_string(),
            format!("{:.1}", (row.resources.shared + launch.shared) as f64 / 1024.0),
            device.occupancy(&row.resources, launch).to_string(),
            row.instructions.to_string(),
            format!("{}{:.2}", if row.unknown > 0 { "≥ " } else { "" }, row.per_weight()),
            format!("{:.3}", row.bytes as f64 / row.case.shape.num_weights() as f64),
            format!("{}{:.2}", if row.unknown > 0 { "≤ " } else { "" }, estimate.of_roof()),
            estimate.limit().to_owned(),
        ]);
    }
    println!("{table}");
    Ok(())
}

/// What each kernel takes; one that is compiled several times in a case, for parts of a weight, all of them together.
fn budgets(rows: &[Row]) -> BTreeMap<String, Budget> {
    let mut budgets: BTreeMap<String, Budget> = BTreeMap::new();
    for row in rows {
        let found = row.budget();
        let all = |sum: &mut Budget| {
            sum.registers = sum.registers.max(found.registers);
            sum.spills = sum.spills.max(found.spills);
            sum.per_weight = ((sum.per_weight + found.per_weight) * 1000.0).round() / 1000.0;
        };
        budgets.entry(row.name()).and_modify(all).or_insert(found);
    }
    budgets
}

fn check(rows: &[Row], path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let budget: BTreeMap<String, Budget> = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let mut grown = Vec::new();
    for (name, found) in budgets(rows) {
        let Some(allowed) = budget.get(&name) else {
            grown.push(format!("{name} is not in the budget"));
            continue;
        };
        let has_grown = found.spills > allowed.spills
            || found.registers as f64 > allowed.registers as f64 * GROWTH
            || found.per_weight > allowed.per_weight * GROWTH;
        if has_grown {
            grown.push(format!("{name}: {found:?} for {allowed:?}"));
        }
    }
    if !grown.is_empty() {
        bail!("{}: {} kernels are beyond it:\n{}", path.display(), grown.len(), grown.join("\n"));
    }
    Ok(())
}
