//! `pixel calibrate`, and what `pixel compress` makes of it, as a user runs them, on models of two layers.
#![cfg(feature = "models")]

mod common;

use approx::abs_diff_eq;
use common::{VOCABULARY, add, json_of, number, pixel, stdout, words};
use pixel_core::archive::calibration::{Calibration, Weighting};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Words of a line, and tokens of a chunk.
const LINE: usize = 8;
/// Lines of `text.txt`.
const LINES: usize = 40;

/// A directory with the model `llama` or `bert`, `text.txt`, and its halves `a.txt` and `b.txt`.
fn workspace(model: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    add(&dir, model);
    let word = |i: usize| format!("w{}", (i * i * 31 + i / 5) % VOCABULARY);
    let line = |i: usize| (0..LINE).map(|j| word(LINE * i + j)).collect::<Vec<_>>().join(" ") + "\n";
    let lines: Vec<String> = (0..LINES).map(line).collect();
    let write = |name: &str, lines: &[String]| fs::write(dir.path().join(name), lines.concat()).unwrap();
    write("text.txt", &lines);
    write("a.txt", &lines[..LINES / 4]);
    write("b.txt", &lines[LINES / 4..]);
    // Every matrix of a layer; without this, most are too small to be compressed.
    fs::write(
        dir.path().join("recipe.toml"),
        "min_weights = 1\n[default]\ncodec = 'trellis'\noptions = { window = 10 }\n",
    )
    .unwrap();
    dir
}

/// Calibrates `model` on the text `text` to the file `output`.
fn calibrate(dir: &TempDir, model: &str, text: &str, output: &str, more: &[&str]) -> Value {
    json_of(dir.path(), &[&["calibrate", model, "--text", text, "--context", "8", "-o", output], more].concat())
}

fn open(dir: &TempDir, name: &str) -> Calibration {
    Calibration::open(dir.path().join(name)).unwrap()
}

fn compress(dir: &TempDir, output: &str, more: &[&str]) -> Value {
    json_of(dir.path(), &[&["compress", "llama", output, "--calibration", "stats.safetensors"], more].concat())
}

fn weights(path: &Path) -> Vec<u8> {
    fs::read(path.join("model.pixel")).unwrap()
}

#[test]
fn a_model_is_calibrated_on_texts() {
    for (model, layers, groups) in [("llama", 14, 8), ("bert", 12, 8)] {
        let dir = workspace(model);
        let report = calibrate(&dir, model, "text.txt", "stats.safetensors", &[]);
        assert_eq!((&report["weights"], &report["groups"]), (&json!(layers), &json!(layers)), "{model}");
        assert_eq!((&report["weighting"], &report["tokens"]), (&json!("gradient"), &json!(LINE * LINES)), "{model}");
        assert_eq!(open(&dir, "stats.safetensors").description().weighting, Weighting::Gradient);
        let report = calibrate(&dir, model, "text.txt", "plain.safetensors", &["--weighting", "uniform"]);
        assert_eq!((&report["weights"], &report["groups"]), (&json!(layers), &json!(groups)), "{model}");
        let calibration = open(&dir, "plain.safetensors");
        assert_eq!(calibration.description().weighting, Weighting::Uniform);
        let source = &calibration.description().sources[0];
        assert_eq!((source.name.as_str(), source.tokens), ("text.txt", (LINE * LINES) as u64));
        let bytes = fs::metadata(dir.path().join("plain.safetensors")).unwrap().len();
        assert_eq!(report["bytes"], bytes);
    }
}

#[test]
fn some_of_the_tokens_are_taken_from_each_text_by_its_length() {
    let dir = workspace("llama");
    let args =
        ["calibrate", "llama", "-t", "a.txt", "b.txt", "--context", "8", "--tokens", "80", "-o", "some.safetensors"];
    let printed = stdout(pixel(dir.path(), &args));
    assert!(printed.contains("14 weights, 14 groups of inputs, 88 tokens"), "{printed}");
    let calibration = open(&dir, "some.safetensors");
    let tokens: Vec<u64> = calibration.description().sources.iter().map(|source| source.tokens).collect();
    assert_eq!(tokens, [24, 64], "2.5 and 7.5 chunks, rounded up");
}

#[test]
fn what_there_is_less_of_than_asked_for_is_said() {
    let dir = workspace("llama");
    let run = |more: &[&str]| {
        let args = ["calibrate", "llama", "-t", "text.txt", "--weighting", "uniform", "-o", "c.safetensors"];
        pixel(dir.path(), &[&args[..], &["--overwrite"], more].concat()).success()
    };
    run(&[]).stderr("").stdout(contains("320 tokens"));
    run(&["--tokens", "320", "--context", "64"]).stderr("");
    run(&["--tokens", "64"]).stderr(starts_with("note: 64 tokens for inputs of width"));
    run(&["--tokens", "321"]).stderr(starts_with("note: --tokens 321: the texts have 320\n"));
    let note = "note: --context 65: llama was made for texts of 64 tokens, which are taken\n";
    run(&["--context", "65"]).stderr(starts_with(note));
    run(&["--context", "65", "--tokens", "321", "--quiet"]).stderr("").stdout("");
}

#[test]
fn enough_text_is_no_matter_and_a_text_that_counts_twice_is() {
    let dir = workspace("llama");
    let text: String = (0..4096).map(|i| format!("w{} ", i * 7 % VOCABULARY)).collect();
    fs::write(dir.path().join("long.txt"), text).unwrap();
    let uniform = ["-t", "long.txt", "--weighting", "uniform", "-o", "c.safetensors"];
    pixel(dir.path(), &[&["calibrate", "llama"], &uniform[..]].concat()).success().stderr("");
    fs::write(dir.path().join("short.txt"), "w1 w2 w3").unwrap();
    let both = ["calibrate", "llama", "-t", "short.txt", "long.txt", "--weighting", "uniform", "-o", "d.safetensors"];
    let note = "note: short.txt: left out, for its 3 tokens are fewer than a chunk of 64\n";
    pixel(dir.path(), &both).success().stderr(note).stdout(contains("4096 tokens"));
    let read = |name: &str| open(&dir, name).description().groups.clone();
    assert_eq!(read("c.safetensors"), read("d.safetensors"));
    let merge = ["calibrate", "--merge", "c.safetensors", "c.safetensors", "-o", "twice.safetensors"];
    let note = "note: the text long.txt counts twice: two of the files were collected from it\n";
    pixel(dir.path(), &merge).success().stderr(note);
}

#[test]
fn a_seed_fixes_what_is_drawn() {
    let dir = workspace("llama");
    let file = |output: &str, more: &[&str]| {
        calibrate(&dir, "llama", "text.txt", output, more);
        fs::read(dir.path().join(output)).unwrap()
    };
    let first = file("a.safetensors", &["--seed", "1"]);
    assert!(first == file("b.safetensors", &["--seed", "1", "--memory", "0"]));
    assert!(first != file("c.safetensors", &["--seed", "2"]));
}

#[test]
fn merged_halves_are_the_whole() {
    for model in ["llama", "bert"] {
        let dir = workspace(model);
        for (text, output) in [("text.txt", "whole"), ("a.txt", "a"), ("b.txt", "b")] {
            calibrate(&dir, model, text, &format!("{output}.safetensors"), &["--weighting", "uniform"]);
        }
        let merge = ["calibrate", "--merge", "a.safetensors", "b.safetensors", "-o", "merged.safetensors"];
        let report = json_of(dir.path(), &merge);
        assert_eq!(report["tokens"], LINE * LINES);
        let (merged, whole) = (open(&dir, "merged.safetensors"), open(&dir, "whole.safetensors"));
        assert_eq!(merged.description().groups, whole.description().groups);
        let sources: Vec<&str> = merged.description().sources.iter().map(|source| source.name.as_str()).collect();
        assert_eq!(sources, ["a.txt", "b.txt"]);
        for group in whole.description().groups.values() {
            let weight = &group.weights[0];
            let of = |file: &Calibration| file.moments(weight).unwrap().unwrap();
            let (found, expected) = (of(&merged), of(&whole));
            for i in 0..group.d_input {
                for j in 0..=i {
                    let bound = 1e-5 * (expected.at(i, i) * expected.at(j, j)).sqrt();
                    let (found, expected) = (found.at(i, j), expected.at(i, j));
                    assert!(abs_diff_eq!(found, expected, epsilon = bound), "{weight}: {found}, expected {expected}");
                }
            }
        }
        // One half alone is something else.
        let (half, whole) = (open(&dir, "a.safetensors"), whole);
        let weight = &whole.description().groups.values().next().unwrap().weights[0];
        assert_ne!(half.moments(weight).unwrap(), whole.moments(weight).unwrap());
    }
}

#[test]
fn what_calibrate_refuses_is_named() {
    let dir = workspace("llama");
    add(&dir, "bert");
    let refuse = |args: &[&str]| {
        pixel(dir.path(), &[&["calibrate", "-o", "stats.safetensors"], args].concat()).code(2).stdout("")
    };
    let llama = |args: &[&str]| refuse(&[&["llama", "--text", "text.txt", "--context", "8"], args].concat());
    refuse(&["llama"]).stderr(contains("--text"));
    refuse(&[]).stderr(contains("MODEL"));
    refuse(&["llama", "--text", "absent.txt"]).stderr(contains("cannot read absent.txt"));
    refuse(&["absent", "--text", "text.txt"]).stderr(contains("cannot read absent/config.json"));
    fs::write(dir.path().join("latin.txt"), b"caf\xE9 w1 w2").unwrap();
    refuse(&["llama", "--text", "text.txt", "latin.txt"]).stderr(contains("latin.txt is not UTF-8"));
    fs::write(dir.path().join("empty.txt"), "\n \n").unwrap();
    let message = contains("empty.txt").and(contains("a chunk needs 64 tokens, the text has 0"));
    refuse(&["llama", "--text", "empty.txt"]).stderr(message);
    refuse(&["bert", "--text", "text.txt", "empty.txt"]).stderr(contains("empty.txt: no line with text"));
    llama(&["--tokens", "0"]).stderr(contains("--tokens 0: it must be at least 1"));
    llama(&["--merge", "a.safetensors"]).stderr(contains("cannot be used with"));
    llama(&["--weighting", "none"]).stderr(contains("[possible values: gradient, uniform]"));
    refuse(&["--merge", "absent.safetensors"]).stderr(contains("absent.safetensors"));
    refuse(&["--merge", "llama/model.safetensors"]).stderr(contains("not a calibration file"));
    for model in ["llama", "bert"] {
        let tokenizer = dir.path().join(model).join("tokenizer.json");
        fs::write(&tokenizer, words(VOCABULARY + 1)).unwrap();
        fs::write(dir.path().join("added.txt"), "w1 w2 w48 ".repeat(9)).unwrap();
        let message = "error: added.txt: the token 48 (\"w48\") has no row in the model's embedding of 48 rows\n";
        refuse(&[model, "--text", "added.txt", "--context", "8"]).stderr(message);
        fs::write(&tokenizer, words(VOCABULARY)).unwrap();
    }
    assert!(!dir.path().join("stats.safetensors").exists());

    for (model, weighting, output) in [
        ("llama", "uniform", "uniform.safetensors"),
        ("llama", "gradient", "gradient.safetensors"),
        ("bert", "uniform", "bert.safetensors"),
    ] {
        calibrate(&dir, model, "text.txt", output, &["--weighting", weighting]);
    }
    refuse(&["--merge", "uniform.safetensors", "gradient.safetensors"]).stderr(contains("tokens weigh Gradient"));
    refuse(&["--merge", "uniform.safetensors", "bert.safetensors"]).stderr(contains("is not the same as in"));
    fs::write(dir.path().join("stats.safetensors"), "mine").unwrap();
    llama(&[]).stderr(contains("stats.safetensors exists already").and(contains("; --overwrite replaces it")));
    assert_eq!(fs::read(dir.path().join("stats.safetensors")).unwrap(), b"mine");
    llama(&["--overwrite"]).stderr(contains("stats.safetensors is no file that PIXEL wrote"));
    assert_eq!(fs::read(dir.path().join("stats.safetensors")).unwrap(), b"mine");
    fs::remove_file(dir.path().join("stats.safetensors")).unwrap();
    for _ in 0..2 {
        calibrate(&dir, "llama", "text.txt", "stats.safetensors", &["--overwrite"]);
    }
    open(&dir, "stats.safetensors");
    fs::remove_file(dir.path().join("llama/tokenizer.json")).unwrap();
    llama(&["--overwrite"]).stderr(contains("llama: there is no tokenizer.json"));
}

#[test]
fn a_directory_in_place_of_the_calibration_is_left_alone() {
    let dir = workspace("llama");
    let kept = dir.path().join("stats/precious.txt");
    fs::create_dir(dir.path().join("stats")).unwrap();
    fs::write(&kept, "mine").unwrap();
    calibrate(&dir, "llama", "text.txt", "a.safetensors", &["--weighting", "uniform"]);
    for args in [&["llama", "--text", "text.txt", "--context", "8"][..], &["--merge", "a.safetensors"]] {
        let refused = pixel(dir.path(), &[&["calibrate", "-o", "stats", "--overwrite"], args].concat()).code(2);
        refused.stdout("").stderr("error: stats is a directory, the output would be a file\n");
        assert_eq!(fs::read_to_string(&kept).unwrap(), "mine");
        assert_eq!(fs::read_dir(dir.path().join("stats")).unwrap().count(), 1);
    }
}

#[cfg(unix)]
#[test]
fn a_calibration_that_is_interrupted_leaves_nothing() {
    let dir = workspace("llama");
    let text: String = (0..400_000).map(|i| format!("w{} ", i * 7 % VOCABULARY)).collect();
    fs::write(dir.path().join("long.txt"), text).unwrap();
    let before = fs::read_dir(dir.path()).unwrap().count();
    // In batches so small that it takes minutes.
    let args = "calibrate llama --text long.txt --context 8 --batch-tokens 8 --tokens 400000 -o stats.safetensors -q";
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pixel"));
    let mut child = command.current_dir(dir.path()).args(args.split(' ')).spawn().unwrap();
    let is_partial =
        |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().to_string_lossy().ends_with(".partial");
    while !fs::read_dir(dir.path()).unwrap().any(is_partial) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let signal = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(signal.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before);
}

/// The group of the layers in a report.
fn layers(report: &Value) -> &Value {
    let groups = report["groups"].as_array().unwrap();
    groups.iter().find(|group| group["treatment"].as_str().unwrap().starts_with("trellis")).unwrap()
}

#[test]
fn a_calibrated_archive_keeps_the_outputs_better() {
    let dir = workspace("llama");
    calibrate(&dir, "llama", "text.txt", "stats.safetensors", &[]);
    let report = compress(&dir, "small", &["--recipe", "recipe.toml", "--bits", "2", "--damping", "0.01"]);
    let layers = layers(&report);
    assert_eq!((&layers["calibrated"], &layers["treatment"]), (&json!(14), &json!("trellis:2:window=10")));
    // Feedback gives away error of the weights for that of the outputs.
    assert!(number(&layers["output_loss"]) < number(&layers["relative_mse"]), "{layers}");
    let plain = json_of(dir.path(), &["compress", "llama", "plain", "--recipe", "recipe.toml", "--bits", "2"]);
    assert_eq!(self::layers(&plain)["output_loss"], Value::Null);
    assert!(number(&self::layers(&plain)["relative_mse"]) < number(&layers["relative_mse"]));
    assert_eq!(weights(&dir.path().join("plain")).len() as u64, plain["report"]["weight_file_bytes"].as_u64().unwrap());
    assert_ne!(weights(&dir.path().join("plain")), weights(&dir.path().join("small")));
    // The more damping, the less feedback.
    let damped = compress(&dir, "damped", &["--recipe", "recipe.toml", "--bits", "2", "--damping", "1"]);
    assert!(number(&self::layers(&damped)["relative_mse"]) < number(&layers["relative_mse"]));
}

#[test]
fn chosen_rates_stay_under_the_target_and_the_saved_recipe_repeats_them() {
    let dir = workspace("llama");
    calibrate(&dir, "llama", "text.txt", "stats.safetensors", &[]);
    let mut before = f64::INFINITY;
    for (target, name) in [("3.5", "low"), ("4.25", "high")] {
        let saved = format!("{name}.toml");
        let chosen = ["--recipe", "recipe.toml", "--target-bits", target, "--save-recipe", &saved];
        let report = compress(&dir, name, &chosen);
        let tensors = report["report"]["tensors"].as_array().unwrap();
        let coded =
            || tensors.iter().filter(|tensor| tensor["codec"].as_str().is_some_and(|c| c.starts_with("trellis")));
        assert_eq!(coded().count(), 14);
        let rates: std::collections::BTreeSet<&str> = coded().map(|tensor| tensor["codec"].as_str().unwrap()).collect();
        assert!(rates.len() > 1, "one rate for all: {rates:?}");
        let bits: f64 = coded().map(|tensor| 8.0 * number(&tensor["stored_bytes"])).sum();
        let shape = |tensor: &Value| tensor["shape"].as_array().unwrap().iter().map(number).product::<f64>();
        let mean = bits / coded().map(shape).sum::<f64>();
        let target: f64 = target.parse().unwrap();
        assert!(mean <= target && mean > target - 0.2, "{mean} of {target} bits");
        let loss = coded().map(|tensor| number(&tensor["output_loss"])).sum::<f64>();
        assert!(loss < before, "{loss} at {target} bits, {before} at fewer");
        before = loss;

        let again = format!("{name}-again");
        compress(&dir, &again, &["--recipe", &saved]);
        assert_eq!(weights(&dir.path().join(name)), weights(&dir.path().join(again)));
        let toml = fs::read_to_string(dir.path().join(&saved)).unwrap();
        assert!(toml.starts_with("# Rates chosen for a mean of ") && toml.contains("# predicted loss "), "{toml}");
    }
    // Factors of low-rank parts count, and the rates are those of what the parts leave.
    let report = compress(&dir, "low-rank", &["--recipe", "recipe.toml", "--target-bits", "6", "--hybrid", "2"]);
    let tensors = report["report"]["tensors"].as_array().unwrap();
    let parts: Vec<_> = tensors.iter().filter(|tensor| !tensor["low_rank"].is_null()).collect();
    assert_eq!(parts.len(), 14);
    let sum = |field: &str| parts.iter().map(|tensor| number(&tensor[field])).sum::<f64>();
    let weights_of = |tensor: &&&Value| tensor["shape"].as_array().unwrap().iter().map(number).product::<f64>();
    let mean = 8.0 * sum("stored_bytes") / parts.iter().map(|tensor| weights_of(&tensor)).sum::<f64>();
    assert!(mean <= 6.0 && mean > 5.5 && sum("low_rank_bytes") > 0.0, "{mean}");
    // The mean of everything counts the embedding at 8 bits, the vectors and the header.
    let all = ["--recipe", "recipe.toml", "--target-bits", "12", "--target-scope", "all"];
    let report = compress(&dir, "all", &all);
    assert!(number(&report["total_bits_per_weight"]) <= 12.0, "{}", report["total_bits_per_weight"]);
    let args = ["compress", "llama", "printed", "--calibration", "stats.safetensors", "--recipe", "recipe.toml"];
    let printed = pixel(dir.path(), &[&args[..], &["--target-bits", "4"]].concat());
    printed.success().stdout(contains("predicted loss").and(contains("mean ")).and(contains("output loss")));
}

#[test]
fn rates_that_the_options_forbid_are_left_out() {
    let dir = workspace("llama");
    calibrate(&dir, "llama", "text.txt", "stats.safetensors", &["--weighting", "uniform"]);
    let rates = |output: &str, tile: &str, target: &str| -> Vec<f64> {
        let args = ["--recipe", "recipe.toml", "--codec", "matching", "--option", tile, "--target-bits", target];
        let report = compress(&dir, output, &args);
        let codecs =
            report["report"]["tensors"].as_array().unwrap().iter().filter_map(|tensor| tensor["codec"].as_str());
        let rates = codecs.filter_map(|codec| codec.strip_prefix("matching:"));
        rates.map(|rate| rate.split(':').next().unwrap().parse().unwrap()).collect()
    };
    let lowest = |rates: &[f64]| rates.iter().copied().fold(f64::INFINITY, f64::min);
    // A whole matrix as one tile takes every rate; 4 bits are too few for the gain and a term of a tile of 9 weights.
    let whole = rates("whole", "tile=0", "2");
    assert_eq!(whole.len(), 14);
    let large = rates("large", "tile=8", "1.2");
    assert!(large.len() == 14 && lowest(&large) == 0.5, "{large:?}");
    let small = rates("small", "tile=3", "2");
    assert!(small.len() == 14 && lowest(&small) == 1.0, "{small:?}");
}

#[test]
fn no_output_takes_an_input_or_another_output_with_it() {
    let dir = workspace("llama");
    fs::create_dir(dir.path().join("out")).unwrap();
    calibrate(&dir, "llama", "text.txt", "out/stats.safetensors", &["--weighting", "uniform"]);
    let refuse = |args: &[&str]| pixel(dir.path(), &[&["compress", "llama", "out"], args].concat()).code(2).stdout("");
    let calibrated = ["--recipe", "recipe.toml", "--calibration", "out/stats.safetensors", "--overwrite"];
    // The directory that would be replaced holds the calibration.
    refuse(&calibrated).stderr(contains("out/stats.safetensors overlap"));
    // And a recipe written there would go with it.
    let saved = ["--target-bits", "3", "--save-recipe", "out/saved.toml"];
    refuse(&[&calibrated[..], &saved].concat()).stderr(contains("--save-recipe out/saved.toml: it lies inside"));
    // As would the recipe that is read.
    let read = ["--recipe", "out/recipe.toml", "--overwrite"];
    refuse(&read).stderr(contains("out/recipe.toml"));
    fs::copy(dir.path().join("recipe.toml"), dir.path().join("out/recipe.toml")).unwrap();
    refuse(&read).stderr(contains("--recipe out/recipe.toml: it lies inside the output out"));
    fs::remove_file(dir.path().join("out/recipe.toml")).unwrap();
    // What is in the way is said before anything is measured.
    refuse(&[&calibrated[..4], &saved].concat()).stderr(contains("out exists already"));
    assert!(dir.path().join("out/stats.safetensors").exists());
    assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 1);
}

#[test]
fn what_compress_refuses_of_a_calibration_is_named() {
    let dir = workspace("llama");
    add(&dir, "bert");
    calibrate(&dir, "llama", "text.txt", "stats.safetensors", &["--weighting", "uniform"]);
    calibrate(&dir, "bert", "text.txt", "bert.safetensors", &["--weighting", "uniform"]);
    let refuse = |args: &[&str]| pixel(dir.path(), &[&["compress", "llama", "out"], args].concat()).code(2).stdout("");
    refuse(&["--calibration", "absent.safetensors"]).stderr(contains("absent.safetensors"));
    refuse(&["--calibration", "llama/model.safetensors"]).stderr(contains("not a calibration file"));
    refuse(&["--calibration", "bert.safetensors"]).stderr(contains("knows no tensor of llama"));
    refuse(&["--target-bits", "3"]).stderr(contains("--calibration"));
    refuse(&["--damping", "0.1"]).stderr(contains("--calibration"));
    let calibrated = |args: &[&str]| refuse(&[&["--calibration", "stats.safetensors"], args].concat());
    calibrated(&["--target-bits", "3", "--bits", "3"]).stderr(contains("cannot be used with"));
    calibrated(&["--save-recipe", "saved.toml"]).stderr(contains("--target-bits"));
    calibrated(&["--target-bits", "0.5"]).stderr(contains("0.5"));
    calibrated(&["--target-bits", "NaN"]).stderr(contains("target_bits = NaN is outside the numbers above 0"));
    calibrated(&["--damping=-1"]).stderr(contains("damping = -1 is outside 0 to 1000"));
    assert!(!dir.path().join("out").exists() && !dir.path().join("saved.toml").exists());
}
