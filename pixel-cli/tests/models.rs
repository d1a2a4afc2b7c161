//! `pixel run` and `pixel eval` as a user runs them, on models of two layers.
#![cfg(feature = "models")]

mod common;

use approx::{assert_abs_diff_eq, assert_relative_eq};
use assert_cmd::Command;
use assert_cmd::assert::Assert;
use common::{VOCABULARY, add, json_of, number, pixel, stdout, with_special, words};
use predicates::prelude::PredicateBooleanExt;
use predicates::str::{contains, starts_with};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

/// A directory with the model `llama` or `bert`, its archive `small`, and `text.txt`: 40 lines of 3 to 9 words.
fn workspace(model: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    add(&dir, model);
    let args = ["compress", model, "small", "--codec", "uniform", "--bits", "4", "--quiet"];
    pixel(dir.path(), &args).success();
    let word = |i: usize| format!("w{}", (i * i * 31 + i * 7) % VOCABULARY);
    let line = |i: usize| (0..3 + i % 7).map(|j| word(10 * i + j)).collect::<Vec<_>>().join(" ");
    let lines = (0..40).map(|i| line(i) + if i % 5 == 0 { "\n\n" } else { "\n" }).collect::<String>();
    fs::write(dir.path().join("text.txt"), lines).unwrap();
    dir
}

const PROMPT: &[&str] = &["run", "llama", "--prompt=w1 w17 w4"];

#[test]
fn a_seed_fixes_the_text_and_temperature_0_needs_none() {
    let dir = workspace("llama");
    let run = |more: &[&str]| stdout(pixel(dir.path(), &[PROMPT, &["--max-tokens", "20"], more].concat()));
    let hot = ["--temperature", "30", "--seed"];
    assert_eq!(run(&[&hot[..], &["7"]].concat()), run(&[&hot[..], &["7"]].concat()));
    assert_ne!(run(&[&hot[..], &["7"]].concat()), run(&[&hot[..], &["8"]].concat()));
    let greedy = run(&["--temperature", "0", "--seed", "7"]);
    assert_eq!(greedy, run(&["--temperature", "0", "--seed", "8"]));
    assert_eq!(greedy, run(&["--temperature", "30", "--top-k", "1"]));
    assert_eq!(greedy, run(&["--temperature", "30", "--top-p", "1e-9"]));
    assert_eq!(greedy, run(&["--temperature", "30", "--min-p", "1"]));
    assert_ne!(greedy, run(&["--temperature", "0", "--repetition-penalty", "3"]));
    assert_ne!(greedy, run(&["--temperature", "0", "--repetition-penalty", "3", "--repetition-window", "2"]));
    assert!(greedy.split_whitespace().all(|word| word.starts_with('w')), "{greedy}");
}

#[test]
fn the_text_is_the_same_as_it_comes_and_at_the_end() {
    let dir = workspace("llama");
    let greedy = ["--temperature", "0", "-n", "12"];
    let run = pixel(dir.path(), &[PROMPT, &greedy].concat())
        .stderr(contains("prompt      3 tokens").and(contains("tokens/s; --max-tokens 12 reached")));
    let streamed = stdout(run);
    let report = json_of(dir.path(), &[PROMPT, &greedy].concat());
    let text = report["text"].as_str().unwrap();
    assert_eq!(streamed, format!("{text}\n"));
    // The first word goes on after the last one of the prompt.
    assert!(text.starts_with(" w"), "{text}");
    let tokens = report["tokens"].as_array().unwrap();
    assert_eq!(text, tokens.iter().map(|token| format!(" w{token}")).collect::<String>());
    assert_eq!((tokens.len(), &report["reason"], &report["prompt_tokens"]), (12, &json!("max_tokens"), &json!(3)));
    for field in ["tokens_per_second", "prompt_tokens_per_second", "generation_seconds", "prompt_seconds"] {
        assert!(report[field].as_f64().unwrap() > 0.0, "{field}");
    }
    let mut piped = Command::cargo_bin("pixel").unwrap();
    piped.current_dir(dir.path()).args(["run", "llama", "--prompt", "-"]).args(greedy);
    assert_eq!(stdout(piped.write_stdin("w1 w17 w4\n").assert()), streamed);
}

#[test]
fn an_archive_runs_with_and_without_dense_copies() {
    let dir = workspace("llama");
    let run = |more: &[&str]| {
        let args = ["run", "small", "--prompt", "w1 w17", "--temperature", "0", "-n", "100"];
        json_of(dir.path(), &[&args, more].concat())
    };
    let cached = run(&[]);
    assert_eq!((cached["tokens"].as_array().unwrap().len(), &cached["reason"]), (62, &json!("max_positions")));
    assert_eq!(cached["tokens"], run(&["--cache", "0"])["tokens"]);
    assert_eq!(cached["tokens"], run(&["--cache", "4K"])["tokens"]);
    for threads in ["1", "3"] {
        assert_eq!(cached["tokens"], run(&["--threads", threads])["tokens"], "{threads} threads");
    }
}

#[test]
fn hashes_are_checked_unless_told_not_to() {
    let dir = workspace("llama");
    let args = ["run", "small", "--prompt", "w1", "--temperature", "0", "-n", "5"];
    let intact = json_of(dir.path(), &[&args[..], &["--skip-hashes"]].concat());
    assert_eq!(intact["tokens"], json_of(dir.path(), &args)["tokens"]);
    let file = dir.path().join("small/model.pixel");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, bytes).unwrap();
    pixel(dir.path(), &args).code(2).stdout("").stderr(contains("small/model.pixel").and(contains("is damaged")));
    json_of(dir.path(), &[&args[..], &["--skip-hashes"]].concat());
}

#[test]
fn a_text_ends_where_the_model_ends_it() {
    let dir = workspace("llama");
    let args = [PROMPT, &["--temperature", "0", "-n", "20"][..]].concat();
    let free = json_of(dir.path(), &args);
    let free = free["tokens"].as_array().unwrap();
    let end = &free[5];
    fs::write(dir.path().join("llama/tokenizer_config.json"), json!({ "eos_token": format!("w{end}") }).to_string())
        .unwrap();
    let ended = json_of(dir.path(), &args);
    let length = free.iter().position(|token| token == end).unwrap();
    assert_eq!((&ended["tokens"], &ended["reason"]), (&json!(free[..length]), &json!("end_of_text")));
    // Any token of a list ends it as well, whatever the other files name.
    fs::write(dir.path().join("llama/tokenizer_config.json"), json!({ "eos_token": "absent" }).to_string()).unwrap();
    let absent = (0..VOCABULARY as u64).find(|token| !free.contains(&json!(token))).unwrap();
    let list = json!({ "eos_token_id": [absent, end] });
    fs::write(dir.path().join("llama/generation_config.json"), list.to_string()).unwrap();
    assert_eq!(json_of(dir.path(), &args)["tokens"], ended["tokens"]);
}

#[test]
fn what_run_refuses_is_named() {
    let dir = workspace("llama");
    let bert = add(&dir, "bert");
    let refuse = |args: &[&str]| pixel(dir.path(), &[&["run"], args].concat()).code(2).stdout("");
    refuse(&["absent", "--prompt", "-1 w1"]).stderr(contains("cannot read absent/config.json"));
    refuse(&["bert", "--prompt", "w1"]).stderr(contains("bert holds an encoder, a decoder is needed"));
    refuse(&["llama", "--prompt", "w1", "--temperature=-1"])
        .stderr(contains("temperature = -1 is outside 0 and above"));
    refuse(&["llama", "--prompt", "w1", "--min-p", "2"]).stderr(contains("min_p = 2 is outside 0 to 1"));
    let message = contains("repetition_penalty = 0 is outside the numbers above 0");
    refuse(&["llama", "--prompt", "w1", "--repetition-penalty", "0"]).stderr(message);
    refuse(&["llama", "--prompt", "w1", "--max-tokens", "0"]).stderr(contains("max_tokens = 0 is outside 1 and above"));
    refuse(&["llama", "--prompt", "w1", "--threads", "1025"]).stderr(contains("1025 is not in 0..=1024"));
    refuse(&["llama", "--prompt", "w1", "--cache", "much"]).stderr(contains("\"much\" is no number of bytes"));
    fs::write(dir.path().join("llama/tokenizer.json"), words(VOCABULARY + 1)).unwrap();
    let message = "error: the token 48 (\"w48\") has no row in the model's embedding of 48 rows\n";
    refuse(&["llama", "--prompt", "w1 w48"]).stderr(message);
    refuse(&["llama", "--prompt", &"w1 ".repeat(64)]).stderr(contains("the prompt has 64 tokens"));
    if cfg!(not(feature = "cuda")) {
        let message = contains("the backend cuda is not compiled in (there are: flex").and(contains("--features cuda"));
        refuse(&["llama", "--prompt", "w1", "--backend", "cuda"]).stderr(message);
    }
    // config.json names a token that begins a text, without which there is nothing to go on from.
    pixel(dir.path(), &["run", "llama", "--prompt", "", "-n", "1"]).success();
    let config = fs::read_to_string(dir.path().join("llama/config.json")).unwrap();
    fs::write(dir.path().join("llama/config.json"), config.replace("bos_token_id", "no_token_id")).unwrap();
    refuse(&["llama", "--prompt", ""]).stderr(contains("the prompt is empty"));
    fs::remove_file(dir.path().join("llama/tokenizer.json")).unwrap();
    refuse(&["llama", "--prompt", "w1"]).stderr(contains("llama: there is no tokenizer.json"));
    fs::remove_dir_all(bert).unwrap();
}

const EVAL: &[&str] = &["--text", "text.txt", "--context", "16", "--batch", "3"];

#[test]
fn a_language_model_against_itself_loses_nothing() {
    let dir = workspace("llama");
    let report = json_of(dir.path(), &[&["eval", "llama", "--against", "llama"], EVAL].concat());
    let estimate = |field: &str| (number(&report[field]["value"]), number(&report[field]["error"]));
    assert_eq!(estimate("perplexity_ratio"), (1.0, 0.0));
    assert_eq!(estimate("kl_divergence"), (0.0, 0.0));
    assert_eq!(estimate("top_1_agreement"), (1.0, 0.0));
    assert_eq!(report["perplexity"], report["dense_perplexity"]);
    assert_eq!(number(&report["weight_file_ratio"]), 1.0);
    assert_eq!(number(&report["size"]["linear_bits_per_weight"]), 32.0);
    let words = fs::read_to_string(dir.path().join("text.txt")).unwrap().split_whitespace().count();
    assert_eq!(report["text_tokens"], words);
    assert_eq!(report["chunks"], words / 16);
    assert_eq!(report["scored_tokens"], words / 16 * 7);
    // By itself, and one chunk at a time, it is the same model.
    let alone = json_of(dir.path(), &["eval", "llama", "--text", "text.txt", "--context", "16"]);
    let perplexity = |report: &Value| number(&report["perplexity"]["value"]);
    assert_relative_eq!(perplexity(&alone), perplexity(&report), max_relative = 1e-5);
    assert!(alone["kl_divergence"].is_null() && alone["convention"].as_str().unwrap().contains("llama.cpp"));
}

#[test]
fn an_archive_is_measured_against_its_source() {
    let dir = workspace("llama");
    // What rounding activations costs: what a model is held against is computed in f32.
    let rounded = json_of(dir.path(), &[&["eval", "small", "--against", "small"], EVAL].concat());
    let divergence = number(&rounded["kl_divergence"]["value"]);
    assert!(divergence > 0.0 && divergence < 1e-4, "{divergence}");
    let exact = [&["eval", "small", "--against", "small", "--arithmetic", "f32"], EVAL].concat();
    assert_eq!(number(&json_of(dir.path(), &exact)["kl_divergence"]["value"]), 0.0);
    let args = [&["eval", "small", "--against", "llama"], EVAL].concat();
    let report = json_of(dir.path(), &args);
    for field in ["perplexity", "dense_perplexity", "perplexity_ratio", "kl_divergence", "top_1_agreement"] {
        assert!(number(&report[field]["value"]) > 0.0, "{field}");
        assert!(number(&report[field]["error"]) > 0.0, "{field}");
    }
    assert_ne!(number(&report["kl_divergence"]["value"]), 0.0);
    // Of the seven matrices of a layer two have the 1024 weights from which on they are coded; the others keep 32 bits.
    let bits = number(&report["size"]["linear_bits_per_weight"]);
    assert!(bits > 4.0 && bits < 32.0, "{bits}");
    let file_bytes = |file: &str| fs::metadata(dir.path().join(file)).unwrap().len();
    let ratio = file_bytes("llama/model.safetensors") as f64 / file_bytes("small/model.pixel") as f64;
    assert_relative_eq!(number(&report["weight_file_ratio"]), ratio, max_relative = 1e-12);
    pixel(dir.path(), &args).success().stderr("").stdout(
        contains("bits/weight")
            .and(contains("smaller"))
            .and(contains("nats"))
            .and(contains("top-1 agreement"))
            .and(contains("as llama.cpp's perplexity tool")),
    );
    let limited = json_of(dir.path(), &[&args[..], &["--limit", "2"]].concat());
    assert_eq!(limited["chunks"], 2);
    let twice = ["eval", "small", "--text", "text.txt", "text.txt", "--context", "16"];
    assert_eq!(number(&json_of(dir.path(), &twice)["text_tokens"]), 2.0 * number(&report["text_tokens"]));
}

#[test]
fn an_encoder_is_measured_by_its_embeddings() {
    let dir = workspace("bert");
    let eval = |args: &[&str]| json_of(dir.path(), &[&["eval"], args, &["--text", "text.txt"]].concat());
    let same = eval(&["bert", "--against", "bert"]);
    assert_abs_diff_eq!(number(&same["cosine"]["value"]), 1.0, epsilon = 1e-12);
    assert_eq!((number(&same["neighbour_overlap"]["value"]), &same["sentences"]), (1.0, &json!(40)));
    let report = eval(&["small", "--against", "bert", "--limit", "20"]);
    let (cosine, overlap) = (number(&report["cosine"]["value"]), number(&report["neighbour_overlap"]["value"]));
    assert!(cosine > 0.9 && cosine < 1.0 && overlap > 0.5 && overlap <= 1.0, "{cosine} {overlap}");
    assert_eq!(report["sentences"], 20);
    // Sentences that are read together do not change each other.
    let alone = eval(&["small", "--against", "bert", "--limit", "20", "--batch", "1"]);
    assert_abs_diff_eq!(number(&alone["cosine"]["value"]), cosine, epsilon = 1e-6);
    pixel(dir.path(), &["eval", "small", "--against", "bert", "--text", "text.txt"])
        .success()
        .stdout(contains("40 sentences").and(contains("overlap of 10")));
    // A sentence is cut to the model's 16 positions.
    fs::write(dir.path().join("text.txt"), "w3 w4 w5 ".repeat(9) + "\n" + &"w7 w8\n".repeat(11)).unwrap();
    assert_eq!(eval(&["small", "--against", "bert"])["sentences"], 12);
}

#[test]
fn what_eval_refuses_is_named() {
    let dir = workspace("llama");
    add(&dir, "bert");
    let refuse = |args: &[&str]| pixel(dir.path(), &[&["eval"], args].concat()).code(2).stdout("");
    let with_text = |args: &[&str]| refuse(&[args, &["--text", "text.txt"]].concat());
    refuse(&["llama", "--text", "absent.txt"]).stderr(contains("cannot read absent.txt"));
    refuse(&["llama"]).stderr(contains("--text"));
    with_text(&["llama", "--context", "2"]).stderr(contains("context = 2 is outside 3 and above"));
    with_text(&["llama", "--limit", "0"]).stderr(contains("--limit"));
    with_text(&["llama", "--context", "16", "--against", "bert"]).stderr(contains("a decoder is needed"));
    with_text(&["bert", "--against", "llama"]).stderr(contains("an encoder is needed"));
    with_text(&["bert"]).stderr(contains("bert is an encoder: --against DENSE is needed"));
    with_text(&["bert", "--against", "bert", "--context", "9"]).stderr(contains("--context is for language models"));
    with_text(&["bert", "--against", "bert", "--limit", "10"])
        .stderr(contains("text.txt: 10 sentences: 11 are needed"));

    fs::write(dir.path().join("short.txt"), "w1 w2 w3").unwrap();
    let message = contains("short.txt: a chunk needs 16 tokens, the text has 3");
    refuse(&["llama", "--context", "16", "--text", "short.txt"]).stderr(message);

    let tokenizer =
        |model: &str, count| fs::write(dir.path().join(model).join("tokenizer.json"), words(count)).unwrap();
    tokenizer("llama", 9);
    let context = ["--context", "16", "--against"];
    let message = contains("the tokenizers of small and llama give different tokens");
    with_text(&[&["small"], &context[..], &["llama"]].concat()).stderr(message);
    tokenizer("llama", VOCABULARY + 1);
    fs::write(dir.path().join("text.txt"), "w48 ".repeat(16)).unwrap();
    let message = contains("the token 48 (\"w48\") has no row in the model's embedding of 48 rows");
    with_text(&["llama", "--context", "16"]).stderr(message);

    // Without a tokenizer of its own, an archive takes that of the model that it is compared with.
    fs::write(dir.path().join("text.txt"), "w4 w7 ".repeat(16)).unwrap();
    fs::remove_file(dir.path().join("small/tokenizer.json")).unwrap();
    with_text(&["small", "--context", "16"]).stderr(contains("small: there is no tokenizer.json"));
    let args = [&["eval", "small"], &context[..], &["llama", "--text", "text.txt"]].concat();
    pixel(dir.path(), &args).success();
}

#[test]
fn the_context_is_what_the_model_has_and_a_cut_is_said() {
    let dir = workspace("llama");
    let eval = |args: &[&str]| pixel(dir.path(), &[&["eval", "llama", "--text", "text.txt", "--json"], args].concat());
    let context = |assert: Assert| serde_json::from_str::<Value>(&stdout(assert)).unwrap()["context"].clone();
    assert_eq!(context(eval(&[]).stderr("")), 64);
    let note = "note: --context 65: llama was made for texts of 64 tokens, which are taken\n";
    assert_eq!(context(eval(&["--context", "65"]).stderr(note)), 64);
    let note = "note: --limit 99: the text has 3 chunks of 64 tokens\n";
    assert_eq!(context(eval(&["--limit", "99"]).stderr(note)), 64);
    add(&dir, "bert");
    let args = ["eval", "bert", "--against", "bert", "--text", "text.txt", "--limit", "41"];
    pixel(dir.path(), &args).success().stderr("note: --limit 41: the text has 40 sentences\n");
}

#[test]
fn a_text_is_text() {
    let dir = workspace("llama");
    fs::write(dir.path().join("llama/tokenizer.json"), with_special("<end>")).unwrap();
    let tokens = |text: &[u8], args: &[&str]| {
        fs::write(dir.path().join("special.txt"), text).unwrap();
        let eval = ["eval", "llama", "--text", "special.txt", "--context", "4"];
        json_of(dir.path(), &[&eval[..], args].concat())["text_tokens"].clone()
    };
    let text = "w1<end>w2 ".repeat(8);
    assert_eq!(tokens(text.as_bytes(), &[]), 8);
    assert_eq!(tokens(text.as_bytes(), &["--special-tokens"]), 24);
    // A byte order mark would be a token of its own.
    let marked = ["\u{FEFF} ", &text].concat();
    assert_eq!(tokens(marked.as_bytes(), &[]), 8);
    let calibrated = |args: &[&str]| {
        let calibrate = ["calibrate", "llama", "-t", "special.txt", "--context", "4", "-o", "c.safetensors"];
        json_of(dir.path(), &[&calibrate[..], &["--overwrite", "--weighting", "uniform"], args].concat())["tokens"]
            .clone()
    };
    assert_eq!((calibrated(&[]), calibrated(&["--special-tokens"])), (json!(8), json!(24)));
    // A prompt is for whoever writes it to spell.
    let run = json_of(dir.path(), &["run", "llama", "--prompt", "w1<end>w2", "-n", "1"]);
    assert_eq!(run["prompt_tokens"], 3);
}

#[test]
fn tensors_that_are_not_read_are_said_in_one_line() {
    let dir = workspace("llama");
    let path = dir.path().join("llama/config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1")).unwrap();
    let warning = "warning: llama: 9 tensors are not read (model.layers.1.input_layernorm.weight, \
                   model.layers.1.mlp.down_proj.weight, model.layers.1.mlp.gate_proj.weight, …): config.json says \
                   num_hidden_layers = 1\n";
    let commands = [
        &["run", "llama", "--prompt", "w1", "-n", "1", "--json"][..],
        &["eval", "llama", "--text", "text.txt"],
        &["calibrate", "llama", "--text", "text.txt", "--weighting", "uniform", "-o", "c.safetensors"],
    ];
    for command in commands {
        pixel(dir.path(), command).success().stderr(starts_with(warning));
    }
}

#[test]
fn numbers_that_python_writes_are_read() {
    let dir = workspace("llama");
    let path = dir.path().join("llama/config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replacen('{', "{\"a\": [0.0, Infinity], \"b\": -Infinity, \"c\": NaN,", 1)).unwrap();
    pixel(dir.path(), &[PROMPT, &["-n", "1"]].concat()).success();
    fs::write(&path, config.replace("1e-05", "NaN")).unwrap();
    let message = contains("llama/config.json: field \"rms_norm_eps\" is \"NaN\"");
    pixel(dir.path(), PROMPT).code(2).stderr(message);
}

#[test]
fn another_vocabulary_cannot_be_compared() {
    let dir = workspace("llama");
    let bytes = fs::read(dir.path().join("llama/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    // The same model with one token less.
    let shorter = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if name.ends_with("embed_tokens.weight") {
            data.truncate(data.len() / VOCABULARY * (VOCABULARY - 1));
            shape[0] -= 1;
        }
        (name.to_owned(), view.dtype(), shape, data)
    };
    let tensors = file.iter().map(shorter).collect::<Vec<_>>();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    safetensors::serialize_to_file(views, None, &other.join("model.safetensors")).unwrap();
    let config = fs::read_to_string(dir.path().join("llama/config.json")).unwrap();
    fs::write(other.join("config.json"), config.replace("\"vocab_size\": 48", "\"vocab_size\": 47")).unwrap();
    let args = ["eval", "small", "--against", "other", "--context", "16", "--text", "text.txt"];
    let message = contains("small has a vocabulary of 48 tokens, other one of 47: they cannot be compared");
    pixel(dir.path(), &args).code(2).stderr(message);
}
