//! The programs, as far as they need neither a driver nor NVIDIA's tools.
#![cfg(feature = "cuda")]

use std::process::Command;

fn run_program(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(program).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn run(arguments: &[&str]) -> (bool, String) {
    run_program(env!("CARGO_BIN_EXE_cuda_kernels"), arguments)
}

#[test]
fn models_that_are_not_known_are_refused() {
    let (succeeded, said) = run_program(env!("CARGO_BIN_EXE_cuda_launches"), &["--models", "gpt"]);
    assert!(!succeeded && said.contains("\"gpt\" is none of smollm2-135m, llama-7b"), "{said}");
    let (succeeded, said) = run_program(env!("CARGO_BIN_EXE_cuda_launches"), &["--recorded"]);
    assert!(!succeeded && said.contains("recording driver"), "{said}");
}

/// What cannot be measured, for want of a device or of time, is a line of the report, and a status that says so.
#[cfg(feature = "wgpu")]
#[test]
fn a_report_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    let arguments = ["--backends", "cuda", "--device", "none", "--quick", "--seconds", "0", "--out", &out];
    let (succeeded, said) = run_program(env!("CARGO_BIN_EXE_gpu_report"), &arguments);
    assert!(!succeeded, "{said}");
    let report = std::fs::read_to_string(folder.path().join("report.md")).unwrap();
    assert!(report.contains("# none") && report.contains("- not measured: "), "{report}");
    assert!(folder.path().join("report.json").exists());
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (succeeded, said) = run(&["--tools", &folder.path().display().to_string()]);
    assert!(!succeeded && said.contains("ptxas is not in"), "{said}");
    let (succeeded, said) = run(&["--shapes", "4096"]);
    assert!(!succeeded && said.contains("OUTPUTSxINPUTS"), "{said}");
    let (succeeded, said) = run(&["--recorded"]);
    assert!(!succeeded && said.contains("recording driver"), "{said}");
}
