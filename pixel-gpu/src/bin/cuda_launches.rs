//! What a token of a language model asks of the CUDA driver, on a machine without a GPU: launches of a layer and beside
//! the layers, waits of the host, and bytes that are copied.

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clap::Parser;
use comfy_table::Table;
use comfy_table::presets::ASCII_MARKDOWN;
use pixel_core::CodecSpec;
use pixel_gpu::models::{Sizes, Text, Weights};
use pixel_gpu::record::{self, Section};
use std::collections::BTreeMap;
use std::env;

/// Layers of the two models whose difference is a layer.
const LAYERS: [usize; 2] = [1, 2];

/// Tokens of the prompt.
const PROMPT: usize = 16;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// Models: smollm2-135m, llama-7b.
    #[arg(long, value_delimiter = ',', default_value = "smollm2-135m,llama-7b")]
    models: Vec<Sizes>,
    /// Codecs of the linear layers, with their rates.
    #[arg(long, value_delimiter = ',', default_value = "lapped:2,uniform:4,trellis:2")]
    codecs: Vec<CodecSpec>,
    /// Fails if a layer with the first codec takes more launches.
    #[arg(long)]
    most: Option<usize>,
    /// Names the kernels of a layer.
    #[arg(long)]
    kernels: bool,
    /// Continues a text on the driver that records it; the program calls itself so.
    #[arg(long, hide = true)]
    recorded: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.recorded {
        return run(&arguments);
    }
    let folder = tempfile::tempdir().context("a folder for the record")?;
    let again: Vec<String> = env::args().skip(1).chain(["--recorded".to_owned()]).collect();
    let recording = record::record(&again, 90, folder.path())?;
    let sections: BTreeMap<_, _> = recording.sections.iter().map(|section| (section.name.as_str(), section)).collect();
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "model",
        "codec",
        "launches a layer",
        "beside the layers",
        "waits a token",
        "bytes to the device",
        "bytes to the host",
    ]);
    for model in &arguments.models {
        for codec in &arguments.codecs {
            let of = |layers| -> Result<&Section> {
                let name = name(model, codec, layers);
                sections.get(name.as_str()).copied().with_context(|| format!("nothing is recorded of {name}"))
            };
            let [one, two] = [of(LAYERS[0])?, of(LAYERS[1])?];
            let layer = two.launches.len() - one.launches.len();
            table.add_row([
                model.name.to_owned(),
                codec.to_string(),
                layer.to_string(),
                (one.launches.len() - layer).to_string(),
                two.waits.to_string(),
                two.copied[0].to_string(),
                two.copied[1].to_string(),
            ]);
            if arguments.kernels {
                let names = one.launches.iter().map(|launch| recording.kernels[launch.kernel].name.as_str());
                eprintln!("{} {codec}:\n  {}", model.name, names.collect::<Vec<_>>().join("\n  "));
            }
            let is_bounded = arguments.codecs.first() == Some(codec);
            if let Some(most) = arguments.most.filter(|_| is_bounded) {
                ensure!(layer <= most, "a layer of {} with {codec} takes {layer} launches for {most}", model.name);
            }
        }
    }
    println!("{table}");
    Ok(())
}

fn name(model: &Sizes, codec: &CodecSpec, layers: usize) -> String {
    format!("{} {codec} {layers}", model.name)
}

/// A token of each model, with a mark before each.
fn run(arguments: &Arguments) -> Result<()> {
    ensure!(record::is_recorded(), "--recorded is for the recording driver alone");
    let device = Device::cuda(0);
    for sizes in &arguments.models {
        for codec in &arguments.codecs {
            for layers in LAYERS {
                let model = sizes.build(layers, &Weights::Coded(codec.clone()), &device)?;
                let mut text = Text::new(&model, PROMPT, 4, &device);
                text.step()?;
                record::mark(&name(sizes, codec, layers))?;
                text.step()?;
                record::mark("")?;
            }
        }
    }
    Ok(())
}
