//! A seeded generator of small English stories.
//!
//! A story draws its facts once (people, an object, a hiding place, numbers, invented names) and
//! mentions them again later, so a model gains by looking back. Sentences come from the patterns
//! of `corpus/templates.rs`, words from the lists of `corpus/words.rs`; nothing is quoted.

mod expand;
mod facts;
mod phrases;
mod templates;
mod words;

use crate::dice::Dice;
use facts::Facts;
use templates::{ASIDES, ENDINGS, EVENTS, OPENINGS, PLOTS};

/// What separates two stories in a text.
pub(crate) const STORY_BREAK: &str = "\n\n";

/// A part of the corpus; each has a seed of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Split {
    /// What the model learns from.
    Train,
    /// What perplexity is measured on.
    HeldOut,
    /// What a compressor may look at.
    Calibration,
}

impl Split {
    fn seed(self) -> u64 {
        match self {
            Self::Train => 1,
            Self::HeldOut => 2,
            Self::Calibration => 3,
        }
    }
}

/// The stories of a split, as many as it takes to reach `bytes` of text.
pub(crate) fn stories(split: Split, bytes: usize) -> Vec<String> {
    let mut dice = Dice::new(split.seed());
    let mut stories = Vec::new();
    let mut total = 0;
    while total < bytes {
        let story = story(&mut dice);
        total += story.len() + STORY_BREAK.len();
        stories.push(story);
    }
    stories
}

/// One story: an opening, the steps of a plot with digressions between them, an ending.
fn story(dice: &mut Dice) -> String {
    let facts = Facts::draw(dice);
    let mut text = facts.render(OPENINGS, dice);
    for beat in dice.pick(PLOTS) {
        if !is_quoting(&text) {
            push_digression(&mut text, &facts, dice);
        }
        push_sentence(&mut text, &facts.render(beat, dice), dice);
    }
    push_sentence(&mut text, &facts.render(ENDINGS, dice), dice);
    text
}

/// Appends a remark one time in four, and two times in four what no plot foresees.
fn push_digression(text: &mut String, facts: &Facts, dice: &mut Dice) {
    match dice.below(4) {
        0 => push_sentence(text, &facts.render(ASIDES, dice), dice),
        1 | 2 => push_sentence(text, &facts.render(EVENTS, dice), dice),
        _ => {}
    }
}

/// Whether a quotation (a letter) is still open at the end of the text.
fn is_quoting(text: &str) -> bool {
    text.matches('"').count() % 2 == 1
}

/// Appends a sentence, on a new line one time in five.
fn push_sentence(text: &mut String, sentence: &str, dice: &mut Dice) {
    text.push(if dice.below(5) == 0 { '\n' } else { ' ' });
    text.push_str(sentence);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_always_the_same_text() {
        assert_eq!(stories(Split::HeldOut, 10_000), stories(Split::HeldOut, 10_000));
    }

    #[test]
    fn no_story_is_told_twice() {
        let mut all = stories(Split::Train, 400_000);
        all.extend(stories(Split::HeldOut, 400_000));
        all.extend(stories(Split::Calibration, 400_000));
        let told = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), told);
    }

    #[test]
    fn no_template_is_left_unfilled() {
        let text = stories(Split::Train, 1_000_000).concat();
        assert_eq!(text.find(['[', ']', '{', '}', '|', '~']), None);
    }
}
