//! `pixel run --chat` as a user runs it, on a model of two layers.
#![cfg(feature = "models")]

mod common;

use assert_cmd::Command;
use common::{add, json_of, pixel, stdout, with_special};
use predicates::str::contains;
use serde_json::json;
use std::fs;
use tempfile::TempDir;

/// Messages are a word for who speaks, what they say, and a special token.
const TEMPLATE: &str = "{% for m in messages %}{{ {'system': 'w3', 'user': 'w1', 'assistant': 'w2'}[m.role] }} \
                        {{ m.content }} <end>{% endfor %}{% if add_generation_prompt %}w2{% endif %}";

/// A directory with the model `llama`, which has a template.
fn workspace() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let model = add(&dir, "llama");
    fs::write(model.join("tokenizer.json"), with_special("<end>")).unwrap();
    fs::write(model.join("tokenizer_config.json"), json!({ "chat_template": TEMPLATE }).to_string()).unwrap();
    dir
}

const GREEDY: &[&str] = &["--temperature", "0", "-n", "6"];
const CHAT: &[&str] = &["run", "llama", "--chat"];

#[test]
fn a_question_is_asked_as_the_template_says() {
    let dir = workspace();
    let ask = |more: &[&str]| json_of(dir.path(), &[CHAT, GREEDY, more].concat());
    let answer = ask(&["--prompt", "w5 w6"]);
    let plain = ["run", "llama", "--prompt", "w1 w5 w6 <end>w2"];
    let expected = json_of(dir.path(), &[&plain[..], GREEDY].concat());
    assert_eq!((&answer["tokens"], &answer["prompt_tokens"]), (&expected["tokens"], &json!(5)));
    assert_eq!(ask(&["--prompt", "w5 w6", "--system", "w7"])["prompt_tokens"], 8);
    // What is typed is text: here a word that is not known.
    assert_eq!(ask(&["--prompt", "w5<end>"])["prompt_tokens"], 4);
    let printed = stdout(pixel(dir.path(), &[CHAT, GREEDY, &["--prompt", "w5 w6"]].concat()));
    assert_eq!(printed.trim_end(), answer["text"].as_str().unwrap());
}

#[test]
fn lines_are_questions_of_one_conversation() {
    let dir = workspace();
    let converse = |input: &str| {
        let mut command = Command::cargo_bin("pixel").unwrap();
        command.current_dir(dir.path()).args(CHAT).args(GREEDY).write_stdin(input).assert().success()
    };
    let first = stdout(converse("w5 w6\n"));
    let both = converse("w5 w6\n\nw8\n").stderr(contains("note: --max-tokens 6 reached"));
    let both = stdout(both);
    assert!(both.starts_with(&first) && both.lines().count() == 2, "{both}");
    let prompt = format!("w1 w5 w6 <end>w2 {}<end>w1 w8 <end>w2", first.replace('\n', " "));
    let plain = json_of(dir.path(), &[&["run", "llama", "--prompt", &prompt], GREEDY].concat());
    assert_eq!(both.lines().nth(1), Some(plain["text"].as_str().unwrap().trim_start()));
    assert_eq!(stdout(converse("")), "");
    let long = converse(&"w5 w6 w7 w8\n".repeat(9));
    long.stderr(contains("note: the oldest exchange did not fit any more and was left out"));
}

#[test]
fn what_a_conversation_needs_is_named() {
    let dir = workspace();
    let refuse = |args: &[&str]| pixel(dir.path(), args).code(2).stdout("");
    refuse(&["run", "llama"]).stderr(contains("--prompt"));
    refuse(&["run", "llama", "--prompt", "w1", "--system", "w2"]).stderr(contains("--chat"));
    refuse(&[CHAT, &["--json"]].concat()).stderr(contains("--json with --chat needs a question: --prompt"));
    let config = dir.path().join("llama/tokenizer_config.json");
    fs::write(&config, json!({ "chat_template": "{{ raise_exception('no system') }}" }).to_string()).unwrap();
    let message = "error: llama/tokenizer_config.json: template of a conversation: line 1: no system\n";
    refuse(&[CHAT, &["--prompt", "w1"]].concat()).stderr(message);
    fs::remove_file(config).unwrap();
    let message = contains("llama: no template of a conversation; looked for chat_template.jinja, and");
    refuse(&[CHAT, &["--prompt", "w1"]].concat()).stderr(message);
}

/// Ctrl-C at the input ends the program, with the status of a program that it has ended.
#[cfg(unix)]
#[test]
fn an_interrupt_at_the_input_ends_the_program() {
    use std::io::{BufRead, BufReader, Write};
    use std::process::Stdio;

    let dir = workspace();
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("pixel"));
    command.current_dir(dir.path()).args(CHAT).args(GREEDY).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // An answer shows that it listens; waiting for the program would close its input.
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"w5 w6\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(!line.is_empty());
    // The note on how the answer ended comes after it, and then the input.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let sent = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(input);
}
