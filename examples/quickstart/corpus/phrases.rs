//! Phrases that a template draws anew at each mention, by name.
//!
//! A phrase is a template itself, so the lists form a grammar: `{~sentence}` grows clauses, which
//! grow persons, deeds and things.

use super::words::{JUNK, LOOKS, TRAITS};

/// The list behind the slot `{~name}`.
///
/// # Panics
/// If there is no such list: slots are part of the program.
pub(super) fn phrases(name: &str) -> &'static [&'static str] {
    match name {
        "sentence" => SENTENCES,
        "clause" => CLAUSES,
        "person" => PERSONS,
        "deed" => DEEDS,
        "object" => OBJECTS,
        "animal" => ANIMALS,
        "job" => JOBS,
        "weather" => WEATHER,
        "sky" => SKIES,
        "how" => MANNERS,
        "mood" => MOODS,
        "time" => TIMES,
        "body" => BODY,
        "pastime" => PASTIMES,
        "junk" => JUNK,
        "trait" => TRAITS,
        "look" => LOOKS,
        "quality" => QUALITIES,
        "lesson" => LESSONS,
        "oh" => EXCLAMATIONS,
        "said" => SAID,
        "noun" => NOUNS,
        "verb" => VERBS,
        "food" => FOOD,
        "tool" => TOOLS,
        "plant" => PLANTS,
        "vessel" => VESSELS,
        "cloth" => CLOTHES,
        "sound" => SOUNDS,
        _ => panic!("no phrases `{name}`"),
    }
}

const SENTENCES: &[&str] = &[
    "{~clause}.",
    "{~clause}, and {~clause}.",
    "{~time}, {~clause}.",
    "{~clause}, but {~person} {~deed}.",
    "while {~clause}, {~person} {~deed}.",
    "{~clause} because {~clause}.",
    "\"{~clause},\" {~said} {~person}.",
    "{~person} asked whether {~clause}.",
    "nobody knew that {~clause}.",
    "{~weather}, so {~clause}.",
    "\"{~oh}!\" {~said} {~person}. \"{~clause}, and {~clause}.\"",
    "when {~clause}, {~clause}.",
    "{~object} was {~quality}, but {~object} was {~quality}.",
    "there was {a ~quality} {~noun} {~spot}, and {~person} {~deed}.",
];

const CLAUSES: &[&str] = &[
    "{~person} {~deed}",
    "{~person} {~deed} {~how}",
    "{~person} {~deed} {~spot}",
    "{~person} was {~mood}",
    "{~person} {~deed} and {~deed}",
    "{~object} was {~spot}",
    "{~person} wanted to {~verb} {~object}",
    "{~person} had {~mood} {~body}",
];

const PERSONS: &[&str] = &[
    "{hero}",
    "{friend}",
    "{elder}",
    "the {~job}",
    "{third}",
    "{a ~animal}",
    "{petname}",
    "the {~trait} {~job}",
    "the {pet}",
    "{a ~quality} {~animal}",
    "nobody",
    "everybody",
];

const DEEDS: &[&str] = &[
    "[cooked|ate|shared|burned|tasted|sold|weighed|peeled] [the|some|all the] {~food}",
    "[sharpened|dropped|borrowed|lent|mended|swung|oiled] [the|{a ~quality}] {~tool}",
    "[planted|watered|picked|smelled|counted|trampled] the {~plant}",
    "[rowed|steered|tied up|sank|painted|launched] [the|{a ~quality}] {~vessel}",
    "[sewed|washed|wore|ironed|tore|folded] [the|{his}|{a ~look}] {~cloth}",
    "[played|heard|practised|forgot|loved] [the|{a ~quality}] {~sound}",
    "[saw|found|carried|hid|stole|wanted|touched|moved|broke|bought|followed] {~object}",
    "[looked at|waited for|laughed at|ran after|talked to|thought of|thanked|met] {~person}",
    "[gave|showed|sent|brought|promised] {~person} {~object}",
    "[slept|sneezed|danced|sang|wept|waited|fell|yawned|jumped|prayed|shivered|hurried]",
    "{~pastime}",
];

const OBJECTS: &[&str] = &[
    "the {~quality} {~noun}",
    "{a ~quality} {~noun}",
    "the {~noun}",
    "{a ~look} {~noun}",
    "the {thing}",
    "the {~noun} of {~person}",
    "{~junk}",
    "{n} {food}",
    "the {~tool}",
    "the {~vessel}",
];

const ANIMALS: &[&str] = &[
    "fox", "hedgehog", "rabbit", "swan", "turtle", "bear", "beaver", "deer", "heron", "lizard", "moth", "otter", "rat",
    "seal", "snail", "wolf", "badger", "bat", "eagle", "toad",
];

const JOBS: &[&str] = &[
    "king", "cook", "sailor", "tailor", "hunter", "painter", "singer", "soldier", "farmer", "fisher", "guard", "judge",
    "mason", "nurse", "pilot", "thief", "queen", "wizard", "barber", "banker",
];

const WEATHER: &[&str] = &[
    "a cold wind blew",
    "it began to rain",
    "the sun came out",
    "fog covered the roofs",
    "snow was falling",
    "the sky turned grey",
    "thunder rolled far away",
    "the air smelled of smoke",
    "a warm breeze came up",
    "the stars were out",
    "the moon was thin and pale",
    "the clouds hung low",
];

const SKIES: &[&str] =
    &["rainy", "windy", "sunny", "foggy", "cold", "warm", "stormy", "grey", "bright", "icy", "golden", "quiet"];

const MANNERS: &[&str] = &[
    "slowly",
    "quickly",
    "softly",
    "loudly",
    "carefully",
    "sadly",
    "gladly",
    "at once",
    "in a whisper",
    "without a word",
    "with a smile",
    "with a sigh",
    "once more",
    "by mistake",
    "all day",
    "for nothing",
];

const MOODS: &[&str] = &[
    "happy",
    "sad",
    "angry",
    "tired",
    "afraid",
    "surprised",
    "glad",
    "worried",
    "cold",
    "thirsty",
    "excited",
    "ashamed",
    "calm",
    "jealous",
    "thankful",
    "bored",
];

const TIMES: &[&str] = &[
    "after a while",
    "an hour later",
    "before noon",
    "that evening",
    "the next morning",
    "when the bell rang",
    "at sunset",
    "soon",
    "just then",
    "two days later",
];

const BODY: &[&str] = &["hands", "feet", "ears", "knees", "eyes", "shoulders", "fingers", "toes"];

const PASTIMES: &[&str] = &[
    "sang a song",
    "ate a slice of bread",
    "counted the chimneys",
    "drew a face in the sand",
    "fed the pigeons",
    "picked a flower",
    "threw stones into the water",
    "looked at the clouds",
    "washed the windows",
    "told old stories",
    "played a game of cards",
    "sat down to rest",
    "swept the floor",
    "made a pot of tea",
];

const QUALITIES: &[&str] = &[
    "big", "small", "strange", "sharp", "soft", "round", "long", "empty", "cheap", "clean", "dirty", "deep", "famous",
    "hidden", "lost", "loose", "magic", "narrow", "open", "plain", "rare", "rough", "secret", "short", "sticky",
    "thick", "ugly", "useful", "wide", "young", "bent", "bitter", "frozen", "hollow", "royal", "wet",
];

const LESSONS: &[&str] = &[
    "a friend is worth more than gold",
    "it is better to ask than to guess",
    "small steps also lead home",
    "a promise is a promise",
    "what is shared is never lost",
    "haste breaks more than it mends",
    "the truth is the shortest road",
    "one should look twice before leaping",
    "even a small light helps in the dark",
    "nobody is too young to help",
];

const EXCLAMATIONS: &[&str] =
    &["Oh no", "Look", "Wait", "Listen", "Well", "Goodness", "Hurry", "Hush", "Come", "Dear me"];

const SAID: &[&str] = &["said", "cried", "whispered", "answered", "shouted", "laughed", "muttered"];

const NOUNS: &[&str] = &[
    "chair", "bucket", "bottle", "wagon", "door", "pillow", "statue", "barrel", "plate", "window", "net", "spoon",
    "button", "ring", "tent", "anchor", "pot", "sign", "cradle", "sword", "globe", "lamp", "stove", "brick", "coin",
    "crown", "desk", "fork", "gate", "jar", "lid", "mask", "nest", "oven", "pen", "rug", "shell", "stick", "table",
    "wall",
];

const VERBS: &[&str] = &[
    "carry", "paint", "break", "sell", "steal", "mend", "draw", "hold", "hear", "smell", "push", "clean", "cut",
    "find", "forget", "bury", "lift", "keep", "count", "lose",
];

const FOOD: &[&str] = &[
    "soup", "bread", "cheese", "honey", "rice", "fish", "butter", "beans", "cake", "jam", "salt", "porridge", "onions",
    "sausage",
];

const TOOLS: &[&str] =
    &["hammer", "saw", "axe", "knife", "drill", "chisel", "rake", "shovel", "needle", "wrench", "ladle", "file"];

const PLANTS: &[&str] = &[
    "roses", "tulips", "cabbages", "beans", "thistles", "herbs", "pumpkins", "ivy", "corn", "daisies", "weeds", "vines",
];

const VESSELS: &[&str] = &["ship", "canoe", "raft", "ferry", "barge", "dinghy", "tug", "galley", "lifeboat", "yacht"];

const CLOTHES: &[&str] =
    &["shirt", "apron", "cloak", "dress", "sock", "jacket", "glove", "shawl", "curtain", "flag", "vest", "bonnet"];

const SOUNDS: &[&str] =
    &["waltz", "march", "trumpet", "harp", "violin", "lullaby", "organ", "horn", "tune", "song", "banjo", "choir"];
