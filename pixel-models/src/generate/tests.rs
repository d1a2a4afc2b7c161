use super::*;
use crate::sampling::Sampler;
use crate::tokenizer::{TextTokenizer, fixtures};
use crate::{LoadOptions, load};
use burn::tensor::{Device, Int, Tensor, TensorData, s};
use pixel_nn::attention::CacheFormat;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

const PROMPT: [u32; 4] = [1, 17, 4, 40];

/// Two layers, 48 tokens, 64 positions, no tokenizer.
fn tiny() -> CausalModel {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
    load(path, &LoadOptions::default(), &Device::flex()).unwrap().into_causal().unwrap()
}

/// The tokenizer of the words `t0` to `t47`, of which the named ones begin and end a text.
fn words(special: Value) -> TextTokenizer {
    fixtures::words(&[("tokenizer_config.json", special)])
}

fn greedy(max_tokens: usize) -> SamplingConfig {
    SamplingConfig::new().with_temperature(0.0).with_max_tokens(max_tokens)
}

/// The logits lie far apart: at lower temperatures the text is one token again and again.
fn hot(max_tokens: usize) -> SamplingConfig {
    SamplingConfig::new().with_temperature(30.0).with_max_tokens(max_tokens)
}

fn run(model: &CausalModel, prompt: &[u32], sampling: &SamplingConfig) -> Generation {
    generate(model, prompt, sampling, |_| ControlFlow::Continue(())).unwrap()
}

fn message(model: &CausalModel, prompt: &[u32], sampling: &SamplingConfig) -> String {
    generate(model, prompt, sampling, |_| panic!("a token")).unwrap_err().to_string()
}

/// The tokens chosen, each from the whole text before it.
fn without_cache(model: &CausalModel, prompt: &[u32], sampling: &SamplingConfig) -> Vec<u32> {
    let (mut text, mut sampler) = (prompt.to_vec(), Sampler::new(sampling).unwrap());
    for _ in 0..sampling.max_tokens {
        let numbers = text.iter().map(|token| i64::from(*token)).collect::<Vec<_>>();
        let tokens = Tensor::<2, Int>::from_data(TensorData::new(numbers, [1, text.len()]), &Device::flex());
        let logits = model.network.forward(tokens).slice(s![.., text.len() - 1.., ..]);
        let logits: Vec<f32> = logits.try_into_vec_as().unwrap();
        text.push(sampler.sample_after(&logits, &text));
    }
    text.split_off(prompt.len())
}

#[test]
fn the_tokens_are_those_of_the_whole_text_read_anew() {
    let model = tiny();
    for sampling in [greedy(20), hot(20)] {
        assert_eq!(run(&model, &PROMPT, &sampling).tokens, without_cache(&model, &PROMPT, &sampling));
    }
    let text = run(&model, &PROMPT, &hot(20));
    assert_eq!((text.reason, text.prompt_tokens, text.steps), (FinishReason::MaxTokens, 4, 19));
    assert!(text.prompt_rate() > 0.0 && text.generation_rate().unwrap() > 0.0);
    assert!(run(&model, &PROMPT, &greedy(1)).generation_rate().is_none());
}

#[test]
fn the_penalty_is_for_prompt_and_text() {
    let model = tiny();
    for window in [None, Some(3)] {
        let sampling = greedy(20).with_repetition_penalty(3.0).with_repetition_window(window);
        let tokens = run(&model, &PROMPT, &sampling).tokens;
        assert_eq!(tokens, without_cache(&model, &PROMPT, &sampling));
        assert_ne!(tokens, run(&model, &PROMPT, &greedy(20)).tokens);
    }
}

#[test]
fn a_seed_fixes_the_text() {
    let model = tiny();
    let tokens = |seed| run(&model, &PROMPT, &hot(30).with_seed(seed)).tokens;
    assert_eq!(tokens(3), tokens(3));
    assert_ne!(tokens(3), tokens(4));
}

#[test]
fn the_positions_of_the_model_are_not_exceeded() {
    let model = tiny();
    let text = run(&model, &PROMPT, &greedy(1000));
    assert_eq!((text.tokens.len(), text.reason), (60, FinishReason::MaxPositions));
    let text = run(&model, &[5; 63], &greedy(1000));
    assert_eq!((text.tokens.len(), text.reason, text.steps), (1, FinishReason::MaxPositions, 0));
    let refused = message(&model, &[5; 64], &greedy(1));
    assert_eq!(refused, "the prompt has 64 tokens, and the model's 64 positions leave no room for more");
}

#[test]
fn the_token_that_ends_a_text_is_not_handed_out() {
    let mut model = tiny();
    let free = run(&model, &PROMPT, &greedy(20)).tokens;
    let eos = free[7];
    let first = free.iter().position(|token| *token == eos).unwrap();
    model.tokenizer = Some(words(json!({ "eos_token": format!("t{eos}") })));
    let text = run(&model, &PROMPT, &greedy(20));
    assert_eq!((text.tokens.as_slice(), text.reason), (&free[..first], FinishReason::EndOfText));
    assert_eq!(text.steps, first);
}

#[test]
fn every_token_that_ends_a_text_ends_it() {
    let mut model = tiny();
    let free = run(&model, &PROMPT, &hot(20)).tokens;
    for end in [free[3], free[9]] {
        // Two that the text does not have come before it in the list.
        let absent = (0..48).filter(|token| !free.contains(token)).take(2).chain([end]).collect::<Vec<u32>>();
        model.tokenizer = Some(fixtures::words(&[("generation_config.json", json!({ "eos_token_id": absent }))]));
        let text = run(&model, &PROMPT, &hot(20));
        let first = free.iter().position(|token| *token == end).unwrap();
        assert_eq!((text.tokens.as_slice(), text.reason), (&free[..first], FinishReason::EndOfText));
    }
}

#[test]
fn the_receiver_can_stop() {
    let mut left = 3;
    let text = generate(&tiny(), &PROMPT, &greedy(20), |_| {
        left -= 1;
        if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let text = text.unwrap();
    assert_eq!((text.tokens.len(), text.reason, text.steps), (3, FinishReason::Stopped, 2));
}

#[test]
fn an_empty_prompt_is_the_token_that_begins_a_text() {
    let mut model = tiny();
    assert_eq!(message(&model, &[], &greedy(5)), "the prompt is empty, and no token is known that begins a text");
    model.tokenizer = Some(words(json!({ "bos_token": "t1" })));
    let empty = run(&model, &[], &greedy(5));
    assert_eq!(empty.tokens, run(&model, &[1], &greedy(5)).tokens);
    assert_eq!(empty.prompt_tokens, 1);
}

#[test]
fn what_cannot_be_generated_from_is_refused() {
    let mut model = tiny();
    let refused = message(&model, &[1, 48], &greedy(5));
    assert_eq!(refused, "the token 48 has no row in the model's embedding of 48 rows");
    assert_eq!(message(&model, &PROMPT, &greedy(0)), "max_tokens = 0 is outside 1 and above");
    model.network.norm.gamma = model.network.norm.gamma.map(|gamma| gamma * f32::NAN);
    let refused = message(&model, &PROMPT, &greedy(5));
    assert_eq!(refused, "after 4 tokens, none of the logits is a number above -inf");
}

/// The model with room for more positions than it was made for, and keys and values held in a format.
fn long(format: CacheFormat) -> CausalModel {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
    let options = LoadOptions::default().with_cache_format(format);
    let mut model = load(path, &options, &Device::flex()).unwrap().into_causal().unwrap();
    model.max_positions = 4096;
    model
}

#[test]
fn a_prompt_in_pieces_is_the_prompt() {
    // A last bit of a key may round to another code.
    for (format, bound) in [(CacheFormat::F32, 1e-5), (CacheFormat::Bits8, 1e-3)] {
        let model = long(format);
        for length in [PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 1] {
            let prompt = (0..length as u32).map(|i| (i * i * 31 + i * 7) % 48).collect::<Vec<_>>();
            let mut session = Session::new(&model);
            let found = session.read(&prompt).unwrap().unwrap();
            assert_eq!(session.held(), prompt);
            let numbers = prompt.iter().map(|token| i64::from(*token)).collect::<Vec<_>>();
            let tokens = Tensor::<2, Int>::from_data(TensorData::new(numbers, [1, length]), &Device::flex());
            let whole = model.network.forward_cached(tokens, &mut model.network.cache());
            let whole = whole.try_into_vec_as::<f32>().unwrap();
            let largest = whole.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
            let off = found.iter().zip(&whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest;
            assert!(off < bound, "{format:?}, {length} tokens: {off}");
            // What the first piece holds does reach the logits.
            let mut other = prompt.clone();
            other[length - 2] = (other[length - 2] + 1) % 48;
            assert_ne!(Session::new(&model).read(&other).unwrap().unwrap(), found);
        }
    }
}

#[test]
fn what_prompts_have_in_common_is_read_once() {
    let model = tiny();
    let mut session = Session::new(&model);
    let mut go_on = |prompt: &[u32]| session.generate(prompt, &greedy(5), |_| ControlFlow::Continue(())).unwrap();
    let first = go_on(&PROMPT);
    assert_eq!(first.reused_tokens, 0);
    // The same prompt, one that goes on from the text, one that leaves it, and one that has nothing of it.
    let longer = [&PROMPT, first.tokens.as_slice(), &[9, 8]].concat();
    let prompts = [(PROMPT.to_vec(), 3), (longer, 8), (vec![1, 17, 5, 5], 2), (vec![30, 31], 0)];
    for (prompt, reused) in prompts {
        let text = go_on(&prompt);
        assert_eq!((text.reused_tokens, text.prompt_tokens), (reused, prompt.len()));
        assert_eq!(text.tokens, run(&model, &prompt, &greedy(5)).tokens);
    }
}

#[test]
fn a_session_stops_between_tokens_and_between_pieces() {
    let (model, stop) = (long(CacheFormat::F32), AtomicBool::new(false));
    let mut session = Session::new(&model).with_stop(&stop);
    let text = session.generate(&PROMPT, &greedy(20), |_| {
        stop.store(true, Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    let text = text.unwrap();
    assert_eq!((text.tokens.len(), text.reason, text.steps), (1, FinishReason::Stopped, 0));
    let text = session.generate(&[5; 2000], &greedy(20), |_| panic!("a token")).unwrap();
    assert_eq!((text.tokens.len(), text.reason), (0, FinishReason::Stopped));
    // It goes on from what it has read.
    stop.store(false, Ordering::Relaxed);
    let go_on = |_| ControlFlow::Continue(());
    let text = session.generate(&PROMPT, &greedy(20), go_on).unwrap();
    assert_eq!(text.tokens, run(&model, &PROMPT, &greedy(20)).tokens);
}
