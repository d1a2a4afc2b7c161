//! `pixel run --chat`: a conversation, line by line.

use super::writer::print;
use super::{Args, Loaded};
use crate::output;
use anyhow::{Context, Result};
use pixel_models::chat::{Answer, Chat};
use pixel_models::generate::FinishReason;
use std::io::{BufRead, IsTerminal, stdin};
use std::ops::ControlFlow;
use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether an answer is under way, which Ctrl-C stops in place of the program.
static ANSWERING: AtomicBool = AtomicBool::new(false);
/// Whether the answer is to stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// The exit status of a program that Ctrl-C has ended.
const INTERRUPTED: i32 = 130;

/// Answers one question if there is one on the command line, else all that come on standard input.
pub(super) fn run(args: &Args, loaded: &Loaded) -> Result<()> {
    let mut chat = Chat::new(&loaded.model)?.with_stop(&STOP);
    if let Some(system) = &args.system {
        chat = chat.with_system(system);
    }
    ctrlc::set_handler(on_signal).context("cannot listen for Ctrl-C")?;
    if let Some(question) = args.prompt()? {
        let answer = answer(args, &mut chat, &question)?;
        args.print(&answer.generation, &answer.text, loaded.seconds);
        return Ok(());
    }
    let terminal = stdin().is_terminal();
    let mut lines = stdin().lock().lines();
    loop {
        if terminal {
            eprint!("> ");
        }
        let Some(line) = lines.next() else { break };
        let line = line.context("cannot read from standard input")?;
        if line.trim().is_empty() {
            continue;
        }
        match answer(args, &mut chat, &line) {
            Ok(answer) => {
                println!();
                say(args, &answer);
            }
            // Whoever sits there may ask otherwise, for instance a shorter question.
            Err(error) if terminal => eprintln!("error: {}", output::message(&error)),
            Err(error) => return Err(error),
        }
    }
    if terminal {
        eprintln!();
    }
    Ok(())
}

/// Answers a question, on standard output as the answer comes.
fn answer(args: &Args, chat: &mut Chat<'_>, question: &str) -> Result<Answer> {
    let mut failure = None;
    STOP.store(false, Ordering::SeqCst);
    ANSWERING.store(true, Ordering::SeqCst);
    let answer = chat.ask(question, &args.sampling(), |piece| match args.json {
        true => ControlFlow::Continue(()),
        false => print(piece).map_or_else(
            |error| {
                failure = Some(error);
                ControlFlow::Break(())
            },
            ControlFlow::Continue,
        ),
    });
    ANSWERING.store(false, Ordering::SeqCst);
    match failure {
        Some(error) => Err(error),
        None => Ok(answer?),
    }
}

/// What there is to say of an answer that did not end by itself, or that cost a part of the conversation.
fn say(args: &Args, answer: &Answer) {
    match answer.generation.reason {
        FinishReason::MaxTokens => eprintln!("note: --max-tokens {} reached", args.max_tokens()),
        FinishReason::MaxPositions => eprintln!("note: the longest text of the model reached"),
        FinishReason::Stopped => eprintln!("note: stopped"),
        _ => {}
    }
    match answer.dropped {
        0 => {}
        1 => eprintln!("note: the oldest exchange did not fit any more and was left out"),
        count => eprintln!("note: the {count} oldest exchanges did not fit any more and were left out"),
    }
}

/// Ctrl-C: stops an answer; at the input, and if an answer does not stop, it ends the program.
fn on_signal() {
    if !ANSWERING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
        eprintln!();
        exit(INTERRUPTED);
    }
}
