//! The program that looks at CUDA kernels, as far as it needs neither a driver nor NVIDIA's tools.
#![cfg(feature = "cuda")]

use std::process::Command;

fn run(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_cuda_kernels")).args(arguments).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
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
