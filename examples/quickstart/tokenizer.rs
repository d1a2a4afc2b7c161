//! A byte-level BPE tokenizer, in the format of the Hugging Face library.

use anyhow::{Context, Result, anyhow};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

/// Begins a document.
pub(crate) const BOS: &str = "<s>";

/// Ends a document.
pub(crate) const EOS: &str = "</s>";

/// Learns a tokenizer of `vocabulary` tokens; all 256 bytes are among them, so that it encodes
/// any text.
pub(crate) fn train(texts: &[String], vocabulary: usize) -> Result<Tokenizer> {
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(bytes)).with_decoder(Some(bytes));
    let mut trainer = TrainerWrapper::from(trainer(vocabulary));
    tokenizer.train(&mut trainer, texts.iter()).map_err(anyhow::Error::from_boxed).context("training the tokenizer")?;
    let bos = special(&tokenizer, BOS)?;
    tokenizer.with_post_processor(Some(begin_with(bos)?));
    Ok(tokenizer)
}

/// The number of a special token.
pub(crate) fn special(tokenizer: &Tokenizer, token: &str) -> Result<u32> {
    tokenizer.token_to_id(token).with_context(|| format!("the tokenizer lacks {token}"))
}

/// The tokens of a text, behind [`BOS`].
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, true).map_err(anyhow::Error::from_boxed)?;
    Ok(encoding.get_ids().to_vec())
}

fn trainer(vocabulary: usize) -> BpeTrainer {
    BpeTrainer::builder()
        .vocab_size(vocabulary)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens([BOS, EOS].map(|token| AddedToken::from(token, true)).to_vec())
        .build()
}

fn begin_with(bos: u32) -> Result<TemplateProcessing> {
    TemplateProcessing::builder()
        .try_single(format!("{BOS} $A"))
        .map_err(|error| anyhow!("{error}"))?
        .special_tokens(vec![(BOS.to_string(), bos)])
        .build()
        .map_err(|error| anyhow!("{error}"))
}
