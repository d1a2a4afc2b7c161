//! Conversations with models that are made for them.
//!
//! ```text
//!  messages ──▶ protect ──▶ ChatTemplate ──▶ text ──▶ ChatTokenizer ──▶ tokens ──▶ Session ──▶ answer
//!                 marks      the model's own            special tokens of
//!                                                       the template alone
//! ```
//!
//! A model says how a conversation is written down by a template of Jinja's, with special tokens between the messages.
//! Those of the template are tokens; one that a message spells out is text: [`ChatTokenizer`] tells them apart by a
//! mark that goes into the messages before the template is filled in, and out of the text when it is cut into tokens.
//! [`Chat`] keeps a conversation and what the model has read of it.
//!
//! # Example
//! ```no_run
//! use burn::tensor::Device;
//! use pixel_models::chat::Chat;
//! use pixel_models::{LoadOptions, sampling::SamplingConfig};
//! use std::ops::ControlFlow;
//!
//! let model = pixel_models::load("models/SmolLM2-135M", &LoadOptions::default(), &Device::flex())?.into_causal()?;
//! let mut chat = Chat::new(&model)?.with_system("You answer in one sentence.");
//! let sampling = SamplingConfig::new();
//! for question in ["What is the capital of France?", "And of Italy?"] {
//!     let answer = chat.ask(question, &sampling, |piece| {
//!         print!("{piece}");
//!         ControlFlow::Continue(())
//!     })?;
//!     println!("\n({} tokens)", answer.generation.tokens.len());
//! }
//! # Ok::<(), pixel_models::ModelError>(())
//! ```

mod conversation;
mod engine;
mod template;
mod tokens;

pub use conversation::{Answer, Chat};
pub use template::ChatTemplate;
pub use tokens::ChatTokenizer;

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What.
    pub content: String,
}

impl Message {
    /// What the model is told before the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model says.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}
