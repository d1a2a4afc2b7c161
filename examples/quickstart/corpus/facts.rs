//! The facts of one story, and the templates filled in with them.

use super::expand::{Piece, capitalised, pieces, with_article};
use super::phrases::phrases;
use super::templates::Beat;
use super::words::*;
use crate::dice::Dice;

/// What the slots of a template stand for, throughout one story.
pub(super) struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// Draws the facts of a new story.
    pub(super) fn draw(dice: &mut Dice) -> Self {
        let mut facts = Self(Vec::with_capacity(64));
        facts.draw_people(dice);
        facts.draw_animals(dice);
        facts.draw_places(dice);
        facts.draw_objects(dice);
        facts.draw_numbers(dice);
        facts
    }

    /// One template of the beat, filled in, with a capital first letter.
    pub(super) fn render(&self, beat: Beat, dice: &mut Dice) -> String {
        capitalised(&self.fill(dice.pick(beat), dice))
    }

    fn fill(&self, template: &str, dice: &mut Dice) -> String {
        pieces(template)
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.to_string(),
                Piece::Slot(slot) => self.slot(slot, dice),
                Piece::Choice(choice) => self.fill(dice.pick(&choice), dice),
            })
            .collect()
    }

    fn slot(&self, slot: &str, dice: &mut Dice) -> String {
        let (article, name) = match slot.split_once(' ') {
            Some((_, name)) => (true, name),
            None => (false, slot),
        };
        let words = self.words(&name.to_lowercase(), dice);
        let words = if article { with_article(&words) } else { words };
        match slot.trim_start_matches('~').starts_with(char::is_uppercase) {
            true => capitalised(&words),
            false => words,
        }
    }

    /// The words for a slot in lower case: a fact or, behind `~`, something new.
    fn words(&self, name: &str, dice: &mut Dice) -> String {
        match name.strip_prefix('~') {
            None => self.fact(name).to_string(),
            Some("spot") => {
                let setting = dice.pick(SETTINGS);
                dice.pick(setting.spots).to_string()
            }
            Some(list) => self.fill(dice.pick_skewed(phrases(list)), dice),
        }
    }

    fn fact(&self, name: &str) -> &str {
        let found = self.0.iter().find(|(slot, _)| *slot == name);
        found.map_or_else(|| panic!("no fact `{name}`"), |(_, word)| word)
    }

    fn set(&mut self, slot: &'static str, word: impl Into<String>) {
        self.0.push((slot, word.into()));
    }

    fn set_all(&mut self, slots: [&'static str; 3], words: [&str; 3]) {
        for (slot, word) in slots.into_iter().zip(words) {
            self.set(slot, word);
        }
    }

    fn draw_people(&mut self, dice: &mut Dice) {
        let (child, pronouns, names, other_pronouns, other_names) = match dice.below(2) {
            0 => ("girl", SHE, GIRLS, HE, BOYS),
            _ => ("boy", HE, BOYS, SHE, GIRLS),
        };
        let [hero, third] = dice.pick_two(names);
        self.set("hero", hero);
        self.set("third", third);
        self.set("friend", dice.pick(other_names));
        self.set("child", child);
        self.set_all(["he", "him", "his"], pronouns);
        self.set_all(["fhe", "fhim", "fhis"], other_pronouns);
        self.set("elder", dice.pick_skewed(ELDERS));
        self.set("trait", dice.pick(TRAITS));
    }

    fn draw_animals(&mut self, dice: &mut Dice) {
        let [(pet, pet_noise), (animal, animal_noise)] = dice.pick_two(ANIMALS);
        self.set("pet", pet);
        self.set("noise", pet_noise);
        self.set("petname", dice.pick(PET_NAMES));
        self.set("animal", animal);
        self.set("anoise", animal_noise);
    }

    fn draw_places(&mut self, dice: &mut Dice) {
        let setting = dice.pick_skewed(SETTINGS);
        self.set("region", setting.region);
        self.set("way", setting.way);
        self.set("spot", dice.pick(setting.spots));
        self.set("town", invent(dice));
        self.set("town2", invent(dice));
    }

    fn draw_objects(&mut self, dice: &mut Dice) {
        let [(noun, act), (noun2, act2)] = dice.pick_two(THINGS);
        let [look, look2] = dice.pick_two(LOOKS);
        self.set_all(["noun", "act", "look"], [noun, act, look]);
        self.set_all(["noun2", "act2", "look2"], [noun2, act2, look2]);
        self.set("thing", format!("{look} {noun}"));
        self.set("thing2", format!("{look2} {noun2}"));
        self.set("build", dice.pick(BUILDS));
        let [material, material2] = dice.pick_two(MATERIALS);
        self.set("material", material);
        self.set("material2", material2);
        let (riddle, answer) = dice.pick_skewed(RIDDLES);
        self.set("riddle", riddle);
        self.set("answer", answer);
        self.set("word", invent(dice));
        self.set("word2", invent(dice));
    }

    /// Draws `n = k + m` with `k` and `m` at least two, since the nouns are plural.
    fn draw_numbers(&mut self, dice: &mut Dice) {
        let n = 4 + dice.below(NUMBERS.len() - 4);
        let k = 2 + dice.below(n - 3);
        self.set_all(["n", "k", "m"], [n, k, n - k].map(|number| NUMBERS[number]));
        self.set("food", dice.pick(FOODS));
        self.set("day", dice.pick(DAYS));
        self.set("season", dice.pick(SEASONS));
    }
}

/// A name that no list contains.
fn invent(dice: &mut Dice) -> String {
    [NAME_HEADS, NAME_MIDDLES, NAME_TAILS].map(|parts| dice.pick(parts)).concat()
}
