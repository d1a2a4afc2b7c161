//! A conversation with a model.

use super::{ChatTemplate, ChatTokenizer, Message};
use crate::CausalModel;
use crate::error::ModelError;
use crate::generate::{FinishReason, Generation, Session};
use crate::sampling::SamplingConfig;
use crate::tokenizer::TextTokenizer;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;

/// The part of a model's positions that a conversation leaves free for an answer, if the answer may be that long.
const ROOM: usize = 4;

/// A conversation, and what the model has read of it.
///
/// Each question is read with all that was said before, of which what the model has read already is not read again. A
/// conversation that grows beyond the model's positions loses its oldest exchanges.
#[derive(Debug)]
pub struct Chat<'a> {
    tokenizer: &'a TextTokenizer,
    encoder: ChatTokenizer,
    template: ChatTemplate,
    session: Session<'a>,
    max_positions: usize,
    system: Option<Message>,
    history: Vec<Message>,
    answers: u64,
}

/// What a model answers.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The answer.
    pub text: String,
    /// How it came about.
    pub generation: Generation,
    /// Exchanges that were left out from now on, the oldest first, for want of positions.
    pub dropped: usize,
}

impl<'a> Chat<'a> {
    /// A conversation with a model that has a template for it.
    ///
    /// # Errors
    /// As [`ChatTemplate::of_model`]; [`ModelError::Text`] for a model without a tokenizer.
    pub fn new(model: &'a CausalModel) -> Result<Self, ModelError> {
        let template = ChatTemplate::of_model(&model.path, model.tokenizer.as_ref())?;
        Self::with_template(model, template)
    }

    /// A conversation that is written down by a given template.
    ///
    /// # Errors
    /// [`ModelError::Text`] for a model without a tokenizer.
    pub fn with_template(model: &'a CausalModel, template: ChatTemplate) -> Result<Self, ModelError> {
        let missing = || ModelError::Text { message: format!("{}: there is no tokenizer", model.path.display()) };
        let tokenizer = model.tokenizer.as_ref().ok_or_else(missing)?;
        Ok(Self {
            tokenizer,
            encoder: ChatTokenizer::new(tokenizer)?,
            template,
            session: Session::new(model),
            max_positions: model.max_positions,
            system: None,
            history: Vec::new(),
            answers: 0,
        })
    }

    /// What the model is told first; it stays when exchanges are left out.
    pub fn with_system(self, text: impl Into<String>) -> Self {
        Self { system: Some(Message::system(text)), ..self }
    }

    /// Ends an answer as soon as `stop` is true; see [`Session::with_stop`].
    pub fn with_stop(self, stop: &'a AtomicBool) -> Self {
        Self { session: self.session.with_stop(stop), ..self }
    }

    /// What was said, without what the model was told first and what was left out.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// Asks, and gives out the answer as it comes; `on_text` ends it with [`ControlFlow::Break`]. An answer that is
    /// ended is part of the conversation as far as it came; a question that has none, or fails, is not.
    ///
    /// # Errors
    /// As [`ChatTokenizer::encode`] and [`generate`](crate::generate::generate()).
    pub fn ask(
        &mut self,
        question: impl Into<String>,
        sampling: &SamplingConfig,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer, ModelError> {
        let mut history = self.history.clone();
        history.push(Message::user(question));
        let (prompt, dropped) = self.fitting(&mut history, sampling.max_tokens)?;
        // Another seed for each answer: the same question is not answered in the same words by design.
        let sampling = sampling.clone().with_seed(sampling.seed.wrapping_add(self.answers));
        let (mut stream, mut text, mut failure) = (self.tokenizer.stream(), String::new(), None);
        let generation = self.session.generate(&prompt, &sampling, |token| match stream.push(token) {
            Ok(piece) if piece.is_empty() => ControlFlow::Continue(()),
            Ok(piece) => {
                text += &piece;
                on_text(&piece)
            }
            Err(error) => {
                failure = Some(error);
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let rest = stream.finish()?;
        if !rest.is_empty() {
            text += &rest;
            // There is nothing left to stop.
            let _ = on_text(&rest);
        }
        if generation.reason != FinishReason::Stopped || !text.is_empty() {
            history.push(Message::assistant(text.clone()));
            self.history = history;
            self.answers += 1;
        }
        Ok(Answer { text, generation, dropped })
    }

    /// The prompt, with room for an answer of `more` tokens or a good part of the positions; exchanges that leave none
    /// are taken out of `history` and counted.
    fn fitting(&self, history: &mut Vec<Message>, more: usize) -> Result<(Vec<u32>, usize), ModelError> {
        let most = self.max_positions - more.min(self.max_positions / ROOM);
        let mut dropped = 0;
        loop {
            let messages = self.system.iter().chain(history.iter()).cloned().collect::<Vec<_>>();
            let prompt = self.encoder.encode(&self.template, &messages)?;
            if prompt.len() <= most || history.len() < 3 {
                return Ok((prompt, dropped));
            }
            history.drain(..2);
            dropped += 1;
        }
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::tokenizer::fixtures::words;
    use crate::{LoadOptions, load};
    use burn::tensor::Device;

    /// Messages are a word for who speaks and what they say.
    const TEMPLATE: &str = "{% for m in messages %}{% if m.content == 't9' %}{{ raise_exception('no t9') }}{% endif %}\
                            t{{ {'system': 3, 'user': 1, 'assistant': 2}[m.role] }} {{ m.content }} {% endfor %}\
                            {% if add_generation_prompt %}t2{% endif %}";

    /// Two layers, 48 tokens, 64 positions.
    fn tiny() -> CausalModel {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/llama");
        let mut model = load(path, &LoadOptions::default(), &Device::flex()).unwrap().into_causal().unwrap();
        model.tokenizer = Some(words(&[]));
        model
    }

    fn chat(model: &CausalModel) -> Chat<'_> {
        Chat::with_template(model, ChatTemplate::new(TEMPLATE).unwrap()).unwrap()
    }

    fn greedy(max_tokens: usize) -> SamplingConfig {
        SamplingConfig::new().with_temperature(0.0).with_max_tokens(max_tokens)
    }

    fn ask(chat: &mut Chat<'_>, question: &str, max_tokens: usize) -> Answer {
        chat.ask(question, &greedy(max_tokens), |_| ControlFlow::Continue(())).unwrap()
    }

    #[test]
    fn a_conversation_is_read_once() {
        let model = tiny();
        let mut chat = chat(&model).with_system("t7 t8");
        let mut pieces = String::new();
        let first = chat.ask("t5 t6", &greedy(3), |piece| {
            pieces += piece;
            ControlFlow::Continue(())
        });
        let first = first.unwrap();
        assert_eq!((&first.text, first.generation.prompt_tokens), (&pieces, 7));
        let second = ask(&mut chat, "t4", 3);
        // Of system, question and answer, the last word of the answer was not read.
        assert_eq!((second.generation.prompt_tokens, second.generation.reused_tokens), (13, 9));
        let said = chat.history().iter().map(|message| message.content.as_str()).collect::<Vec<_>>();
        assert_eq!(said, ["t5 t6", &first.text, "t4", &second.text]);
        // What was read at once says the same.
        let prompt = format!("t3 t7 t8 t1 t5 t6 t2 {} t1 t4 t2", first.text);
        let prompt = model.tokenizer.as_ref().unwrap().encode(&prompt).unwrap();
        let anew = Session::new(&model).generate(&prompt, &greedy(3), |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(second.generation.tokens, anew.tokens);
    }

    #[test]
    fn the_oldest_exchanges_make_room() {
        let model = tiny();
        let mut chat = chat(&model).with_system("t7");
        let answers = (0..12).map(|_| ask(&mut chat, "t5 t6 t4", 5)).collect::<Vec<_>>();
        assert!(answers.iter().all(|answer| answer.generation.prompt_tokens <= 59 && !answer.text.is_empty()));
        // Each exchange has 10 words, the system 2: with the sixth there would be 62.
        let dropped = answers.iter().map(|answer| answer.dropped).collect::<Vec<_>>();
        assert_eq!(dropped, [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]);
        assert_eq!(chat.history().len(), 12);
        // A question that leaves no room by itself is refused, and not a part of the conversation.
        let refused = chat.ask("t5 ".repeat(64), &greedy(5), |_| ControlFlow::Continue(())).unwrap_err();
        assert!(refused.to_string().contains("leave no room for more"), "{refused}");
        assert_eq!(chat.history().len(), 12);
    }

    #[test]
    fn an_answer_that_is_stopped_stays_as_far_as_it_came() {
        let (model, stop) = (tiny(), AtomicBool::new(true));
        let mut chat = chat(&model).with_stop(&stop);
        let answer = ask(&mut chat, "t5", 9);
        assert_eq!((answer.text.as_str(), answer.generation.reason), ("", FinishReason::Stopped));
        assert!(chat.history().is_empty());
        stop.store(false, std::sync::atomic::Ordering::Relaxed);
        let answer = chat.ask("t5", &greedy(9), |_| ControlFlow::Break(())).unwrap();
        assert_eq!((answer.generation.tokens.len(), answer.generation.reason), (1, FinishReason::Stopped));
        assert_eq!(chat.history()[1], Message::assistant(answer.text));
        let refused = chat.ask("t9", &greedy(9), |_| ControlFlow::Continue(())).unwrap_err();
        assert!(refused.to_string().ends_with("no t9"), "{refused}");
        assert_eq!(chat.history().len(), 2);
    }

    #[test]
    fn what_is_missing_is_told() {
        let mut model = tiny();
        assert!(matches!(Chat::new(&model), Err(ModelError::NoTemplate { .. })));
        model.tokenizer = None;
        let error = Chat::with_template(&model, ChatTemplate::new(TEMPLATE).unwrap()).unwrap_err();
        assert!(error.to_string().ends_with("llama: there is no tokenizer"), "{error}");
    }
}
