//! What a device makes of PIXEL: whether products are right, how much of the memory's bandwidth they reach beside dense
//! products in F16, and what a token of a language model takes. Each backend is measured in a process of its own, so
//! that one that fails leaves the others.

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, DeviceKind};
use clap::{Parser, ValueEnum};
use pixel_core::CodecSpec;
use pixel_core::backend::probe_device;
use pixel_gpu::cases::{self, ShapeName};
use pixel_gpu::models::Sizes;
use pixel_gpu::report::{BackendReport, Properties, Report};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    Cuda,
    Wgpu,
}

#[derive(Parser)]
#[command(about)]
struct Arguments {
    /// Through what the device is used.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "cuda,wgpu")]
    backends: Vec<Backend>,
    /// The name of the device; NVIDIA's driver is asked if none is given.
    #[arg(long)]
    device: Option<String>,
    /// Codecs with their rates.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "lapped:2,lapped:3,lapped:4,additive:2,trellis:2,trellis:4,uniform:4,uniform:8,matching:2"
    )]
    codecs: Vec<CodecSpec>,
    /// Shapes of weights, outputs first.
    #[arg(long, value_delimiter = ',', default_value = "4096x4096,4096x11008,11008x4096,576x1536")]
    shapes: Vec<ShapeName>,
    /// Rows of activations.
    #[arg(long, value_delimiter = ',', default_value = "1,8,128")]
    batches: Vec<usize>,
    /// Models whose tokens are timed: smollm2-135m, llama-7b.
    #[arg(long, value_delimiter = ',', default_value = "smollm2-135m,llama-7b")]
    models: Vec<Sizes>,
    /// Codecs of their linear layers, dense ones in F16 beside them.
    #[arg(long, value_delimiter = ',', default_value = "lapped:2,lapped:4")]
    model_codecs: Vec<CodecSpec>,
    /// Layers of a model, if not as many as it has.
    #[arg(long)]
    layers: Option<usize>,
    /// The property suite, a test program of pixel-core.
    #[arg(long)]
    properties: Option<PathBuf>,
    /// Where report.json, report.md and what the suite prints are put.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Seconds for the suite of a backend, and as many for its measurements; what is not begun by then is left out. Of
    /// two backends all is over after four and a half times as many.
    #[arg(long, default_value_t = 100)]
    seconds: u64,
    /// Small copies and few tokens, to see that everything works.
    #[arg(long)]
    quick: bool,
    /// Measures through this backend alone; the program calls itself so.
    #[arg(long, hide = true, value_enum, requires = "measured")]
    through: Option<Backend>,
    /// Where the result is written then.
    #[arg(long, hide = true)]
    measured: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let (Some(path), Some(backend)) = (&arguments.measured, arguments.through) {
        return measure(&arguments, backend, path).map(|()| ExitCode::SUCCESS);
    }
    fs::create_dir_all(&arguments.out).with_context(|| arguments.out.display().to_string())?;
    let device = arguments.device.clone().or_else(driver_says).context("no NVIDIA driver answers: give --device")?;
    let backends = arguments.backends.iter().map(|backend| examine(&arguments, *backend));
    let report = Report { device, backends: backends.collect::<Result<_>>()? };
    let markdown = report.markdown();
    write(&arguments.out.join("report.json"), &serde_json::to_string_pretty(&report)?)?;
    write(&arguments.out.join("report.md"), &markdown)?;
    print!("{markdown}");
    Ok(if report.has_failures() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// The device's name, its driver's version and its clock, as NVIDIA's driver has them.
fn driver_says() -> Option<String> {
    let query = ["--query-gpu=name,driver_version,clocks.max.sm", "--format=csv,noheader"];
    let output = Command::new("nvidia-smi").args(query).output().ok().filter(|output| output.status.success())?;
    String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned)
}

/// Everything about one backend, in processes that are ended when they take too long.
fn examine(arguments: &Arguments, backend: Backend) -> Result<BackendReport> {
    let name = backend.name();
    let limit = Duration::from_secs(arguments.seconds);
    let mut properties = None;
    if let Some(suite) = &arguments.properties {
        let path = arguments.out.join(format!("properties-{name}.txt"));
        let printed = File::create(&path).with_context(|| path.display().to_string())?;
        let mut command = Command::new(suite);
        command.arg(format!("tests::{name}::")).env("PROPTEST_RNG_SEED", "2026");
        command.stderr(printed.try_clone()?).stdout(printed);
        // How it ended follows from what it printed.
        let _ = run(command, limit)?;
        properties = Some(Properties::parse(&fs::read_to_string(&path)?));
    }
    let path = arguments.out.join(format!("measured-{name}.json"));
    let mut command = Command::new(std::env::current_exe()?);
    command.args(std::env::args().skip(1)).args(["--through", name]).arg("--measured").arg(&path);
    // Beyond its deadline a measurement that was begun may end.
    let status = run(command, limit + limit / 4)?;
    let text = fs::read_to_string(&path).ok();
    let mut found: BackendReport = text.map(|text| serde_json::from_str(&text)).transpose()?.unwrap_or_default();
    name.clone_into(&mut found.backend);
    found.properties = properties;
    if let Err(end) = status {
        found.failures.push(format!("the measurements {end}"));
    }
    let _ = fs::remove_file(&path);
    Ok(found)
}

/// Runs a program; the inner error says how it ended, if not well.
fn run(mut command: Command, limit: Duration) -> Result<Result<(), String>> {
    let program = command.get_program().display().to_string();
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| program.clone())?;
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().with_context(|| program.clone())? {
            return Ok(if status.success() { Ok(()) } else { Err(format!("ended: {status}")) });
        }
        if start.elapsed() > limit {
            child.kill().with_context(|| program.clone())?;
            child.wait().with_context(|| program.clone())?;
            return Ok(Err(format!("were ended after {} s", limit.as_secs())));
        }
        sleep(Duration::from_millis(50));
    }
}

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
        }
    }

    fn device(self) -> Device {
        match self {
            Self::Cuda => Device::cuda(0),
            Self::Wgpu => Device::wgpu(DeviceKind::DefaultDevice),
        }
    }
}

/// Measures, and writes what is known so far after each measurement.
fn measure(arguments: &Arguments, backend: Backend, path: &Path) -> Result<()> {
    let device = backend.device();
    let mut report = BackendReport { backend: backend.name().to_owned(), ..BackendReport::default() };
    if let Err(error) = probe_device(&device) {
        bail!("{error}");
    }
    let deadline = Instant::now() + Duration::from_secs(arguments.seconds);
    let quick = arguments.quick;
    let mut add = |what: String, work: &dyn Fn(&mut BackendReport) -> Result<()>| -> Result<()> {
        if Instant::now() > deadline {
            report.failures.push(format!("{what}: no time was left"));
        } else if let Err(error) = work(&mut report) {
            report.failures.push(format!("{what}: {error:#}"));
        }
        // A file that is whole at any time, should the device end the process.
        let next = path.with_extension("next");
        write(&next, &serde_json::to_string(&report)?)?;
        fs::rename(&next, path).with_context(|| path.display().to_string())
    };
    add("copy".to_owned(), &|report| report.measure_copy(&device, quick))?;
    // What matters most comes first.
    for model in &arguments.models {
        let layers = arguments.layers.unwrap_or(model.layers);
        let codecs = arguments.model_codecs.iter().map(Some).chain([None]);
        for codec in codecs {
            let name = codec.map_or_else(|| "F16".to_owned(), ToString::to_string);
            let what = format!("a token of {}, {name}", model.name);
            add(what, &|report| report.measure_decode(model, layers, codec, &device, quick))?;
        }
    }
    for &batch in &arguments.batches {
        for &shape in &arguments.shapes {
            let what = format!("F16 {shape} {batch}");
            add(what, &|report| report.measure_dense(shape.0, batch, &device, quick))?;
        }
        for case in cases::all(&arguments.codecs, &arguments.shapes, &[batch])? {
            add(case.to_string(), &|report| report.measure_product(&case, &device, quick))?;
        }
    }
    Ok(())
}
