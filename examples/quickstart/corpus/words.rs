//! The vocabulary of the stories: plain lists, written for this project.

/// Names of girls.
pub(super) const GIRLS: &[&str] = &[
    "Mina", "Tilda", "Orla", "Petra", "Saskia", "Juno", "Willa", "Greta", "Nora", "Fenna", "Ines", "Lotte", "Marta",
    "Pia", "Ruta", "Selma", "Thea", "Ulla", "Vera", "Yara", "Zelda", "Anouk", "Brina", "Calla", "Dora", "Elsa",
    "Hedda", "Ivy", "Katya", "Leona",
];

/// Names of boys.
pub(super) const BOYS: &[&str] = &[
    "Aldo", "Bram", "Casper", "Dirk", "Emil", "Felix", "Gustav", "Hugo", "Ivo", "Jonas", "Kurt", "Lars", "Milo",
    "Niels", "Otto", "Pavel", "Quinn", "Rolf", "Sander", "Theo", "Umar", "Viktor", "Walt", "Yuri", "Anton", "Boris",
    "Cyril", "Dario", "Ernst", "Florian",
];

/// Pronouns of a girl: subject, object, possessive.
pub(super) const SHE: [&str; 3] = ["she", "her", "her"];

/// Pronouns of a boy: subject, object, possessive.
pub(super) const HE: [&str; 3] = ["he", "him", "his"];

/// Names of pets.
pub(super) const PET_NAMES: &[&str] = &[
    "Button", "Pepper", "Biscuit", "Thimble", "Mossy", "Pickle", "Soot", "Nutmeg", "Clover", "Bramble", "Whistle",
    "Turnip", "Marble", "Puddle", "Cricket", "Feather",
];

/// Kinds of pets and other animals, each with the noise it makes.
pub(super) const ANIMALS: &[(&str, &str)] = &[
    ("dog", "barked"),
    ("cat", "purred"),
    ("goat", "bleated"),
    ("duck", "quacked"),
    ("goose", "hissed"),
    ("donkey", "brayed"),
    ("pony", "snorted"),
    ("hen", "clucked"),
    ("crow", "cawed"),
    ("frog", "croaked"),
    ("lamb", "bleated"),
    ("mouse", "squeaked"),
    ("owl", "hooted"),
    ("pig", "grunted"),
    ("sparrow", "chirped"),
    ("squirrel", "chattered"),
];

/// Objects, each with what one does with it.
pub(super) const THINGS: &[(&str, &str)] = &[
    ("kite", "fly"),
    ("lantern", "light"),
    ("flute", "play"),
    ("drum", "beat"),
    ("map", "read"),
    ("boat", "sail"),
    ("cart", "pull"),
    ("clock", "wind"),
    ("bell", "ring"),
    ("basket", "fill"),
    ("book", "read"),
    ("key", "turn"),
    ("whistle", "blow"),
    ("hat", "wear"),
    ("scarf", "wear"),
    ("coat", "wear"),
    ("ladder", "climb"),
    ("kettle", "boil"),
    ("sled", "ride"),
    ("spade", "use"),
    ("rope", "tie"),
    ("box", "open"),
    ("fiddle", "play"),
    ("candle", "light"),
    ("mirror", "polish"),
    ("wheel", "spin"),
    ("ball", "throw"),
    ("blanket", "fold"),
    ("telescope", "use"),
    ("broom", "use"),
    ("umbrella", "open"),
    ("puppet", "move"),
];

/// What an object looks like.
pub(super) const LOOKS: &[&str] = &[
    "red", "blue", "green", "yellow", "white", "black", "brown", "orange", "purple", "silver", "golden", "wooden",
    "tin", "copper", "paper", "glass", "tiny", "heavy", "striped", "broken", "old", "new", "painted", "dusty", "shiny",
    "crooked",
];

/// A region of the town: its name, the way there, and places in it.
#[derive(Clone, Copy)]
pub(super) struct Setting {
    /// The region, with its article.
    pub region: &'static str,
    /// How one walks there.
    pub way: &'static str,
    /// Places where something can lie, each with its preposition.
    pub spots: &'static [&'static str],
}

/// All regions.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        region: "the harbour",
        way: "along the quay",
        spots: &[
            "under the long pier",
            "beside the fishing nets",
            "behind the lighthouse",
            "inside an empty barrel",
            "on the deck of a ferry",
            "between two crates of salt",
            "at the foot of the crane",
        ],
    },
    Setting {
        region: "the forest",
        way: "down the mossy path",
        spots: &[
            "under a fallen oak",
            "inside a hollow tree",
            "beside the badger hole",
            "among the ferns",
            "on a flat stone",
            "behind the woodpile",
            "in a nest of dry leaves",
        ],
    },
    Setting {
        region: "the farm",
        way: "across the wet field",
        spots: &[
            "behind the barn",
            "under the hay",
            "next to the pump",
            "on top of the gate",
            "inside the henhouse",
            "beneath the plum tree",
            "in the milk cart",
        ],
    },
    Setting {
        region: "the market",
        way: "through the narrow lanes",
        spots: &[
            "under the cheese stall",
            "behind a sack of flour",
            "on the steps of the fountain",
            "beside the flower seller",
            "inside a clay jar",
            "below the clock tower",
            "among the baskets of figs",
        ],
    },
    Setting {
        region: "the mountain",
        way: "up the steep track",
        spots: &[
            "at the mouth of a cave",
            "behind the waterfall",
            "under a ledge of snow",
            "beside the shepherd's hut",
            "on the rope bridge",
            "in a crack in the rock",
            "near the highest pine",
        ],
    },
    Setting {
        region: "the river",
        way: "over the stepping stones",
        spots: &[
            "under the stone bridge",
            "among the reeds",
            "beside the mill wheel",
            "on a sandy island",
            "in the bottom of a canoe",
            "behind the willow",
            "at the end of the jetty",
        ],
    },
    Setting {
        region: "the castle",
        way: "over the drawbridge",
        spots: &[
            "behind the throne",
            "at the top of the north tower",
            "in the cold kitchen",
            "under the spiral stairs",
            "inside a rusty helmet",
            "beside the dry well",
            "in the room of mirrors",
        ],
    },
    Setting {
        region: "the school",
        way: "past the bakery",
        spots: &[
            "under the last bench",
            "behind the blackboard",
            "in the attic",
            "on the library shelf",
            "inside the piano",
            "beside the coat hooks",
            "below the staircase",
        ],
    },
];

/// Grown people of the town.
pub(super) const ELDERS: &[&str] = &[
    "the baker",
    "the miller",
    "the ferryman",
    "the blacksmith",
    "the teacher",
    "the gardener",
    "the clockmaker",
    "the shepherd",
    "the librarian",
    "the weaver",
    "the doctor",
    "the potter",
    "the postman",
    "the beekeeper",
    "the carpenter",
    "the old captain",
    "Aunt Rosa",
    "Uncle Henrik",
    "Grandmother Ilse",
    "Grandfather Tom",
];

/// Traits of a child.
pub(super) const TRAITS: &[&str] = &[
    "clever", "shy", "brave", "curious", "careless", "patient", "stubborn", "cheerful", "quiet", "hungry", "lonely",
    "kind", "restless", "careful", "proud", "honest",
];

/// Food that comes in numbers.
pub(super) const FOODS: &[&str] = &[
    "apples",
    "plums",
    "pears",
    "buns",
    "eggs",
    "figs",
    "walnuts",
    "cherries",
    "pancakes",
    "carrots",
    "cookies",
    "dumplings",
    "berries",
    "turnips",
    "pies",
    "lemons",
];

/// Things that are worth nothing.
pub(super) const JUNK: &[&str] = &[
    "an old shoe",
    "a rusty nail",
    "some wet straw",
    "a broken cup",
    "two feathers",
    "a piece of string",
    "an empty bottle",
    "a dead leaf",
    "a lost glove",
    "nothing but dust",
    "a torn letter",
    "three pebbles",
];

/// What one builds, and what one builds with.
pub(super) const BUILDS: &[&str] = &[
    "raft",
    "hut",
    "bridge",
    "swing",
    "windmill",
    "kennel",
    "tower",
    "stage",
    "fence",
    "oven",
    "treehouse",
    "birdhouse",
];

/// Building materials.
pub(super) const MATERIALS: &[&str] =
    &["planks", "nails", "bricks", "rope", "straw", "clay", "branches", "canvas", "paint", "stones", "wire", "reeds"];

/// Riddles: the question and its answer.
pub(super) const RIDDLES: &[(&str, &str)] = &[
    ("what has teeth but cannot bite", "a comb"),
    ("what has hands but cannot wave", "a clock"),
    ("what runs all day but never gets tired", "the river"),
    ("what has an eye but cannot see", "a needle"),
    ("what grows when it is fed and dies when it drinks", "fire"),
    ("what goes up the hill and down the hill but never moves", "the road"),
    ("what can fill a room but weighs nothing", "light"),
    ("what has a neck but no head", "a bottle"),
    ("what falls every winter and never gets hurt", "snow"),
    ("what has many leaves but is not a tree", "a book"),
    ("what has four legs and never walks", "a table"),
    ("what follows you at noon and leaves you at night", "your shadow"),
    ("what speaks without a mouth in the valley", "an echo"),
    ("what gets wet while it dries", "a towel"),
];

/// Days of the week.
pub(super) const DAYS: &[&str] = &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Seasons.
pub(super) const SEASONS: &[&str] = &["spring", "summer", "autumn", "winter"];

/// Number words; the index is the number.
pub(super) const NUMBERS: &[&str] =
    &["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// First halves of invented names.
pub(super) const NAME_HEADS: &[&str] = &[
    "Bel", "Dor", "Mar", "Kel", "Tan", "Wen", "Hol", "Fal", "Gren", "Lin", "Os", "Pel", "Rav", "Sil", "Tor", "Ver",
    "Ash", "Brim", "Cor", "Drum", "El", "Fen", "Had", "Im",
];

/// Middles of invented names.
pub(super) const NAME_MIDDLES: &[&str] = &["", "a", "en", "i", "o", "er", "u", "in"];

/// Last halves of invented names.
pub(super) const NAME_TAILS: &[&str] = &[
    "ham", "wick", "stead", "mouth", "field", "dale", "bury", "ford", "gate", "mere", "ton", "cliff", "brook", "haven",
    "moor", "well",
];
