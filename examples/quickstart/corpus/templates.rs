//! The sentences of the stories.
//!
//! - `[a|b|c]` chooses one of the alternatives, which may be empty and may nest.
//! - `{name}` inserts a fact of the story; the same fact each time it is mentioned.
//! - `{~name}` draws a phrase from a list, anew each time; a phrase is a template itself.
//! - `{a name}` puts the fitting indefinite article in front.
//! - A capital initial (`{Hero}`, `{~Name}`, `{A name}`) capitalises what is inserted.
//!
//! A template begins with a capital letter in the text, however it is written here.

/// One step of a plot: templates of which a story takes one.
pub(super) type Beat = &'static [&'static str];

/// How a story begins.
pub(super) const OPENINGS: Beat = &[
    "[once upon a time|long ago|many years ago], {a trait} {child} called {hero} lived in {town}, [near|close to|not \
     far from] {region}.",
    "in the [small|quiet|old|busy|windy] town of {town} lived {a trait} {child}. [{His} name was|Everyone called \
     {him}] {hero}.",
    "{hero} was {a trait} {child} [from {town}|who lived in {town}] with a [small|fat|clever|noisy] {pet} called \
     {petname}.",
    "it was {a ~sky} {day} in {town}. {Hero} and {friend} were walking {way}.",
    "every {day}, {hero} went to {region} of {town} with {friend} and the {pet}[| called {petname}].",
    "\"wake up, {hero}!\" [called|shouted] {friend}. \"It is {day}, and all of {town} is going to {region}.\"",
    "one {~sky} {season} [morning|evening|day], {hero} [woke up early|could not sleep|looked out of the window]. {He} \
     [thought of|dreamed of|wanted to see] {region}[| with {friend}].",
    "[people in {town} still tell|this is] the story of {hero}, {a trait} {child}, and {his} friend {friend}.",
    "{elder} of {town} had [two helpers|two pupils|two good friends], {hero} and {friend}. {Hero} was {trait}, \
     [and|but] {friend} was {~trait}.",
];

/// Remarks about the people of the story, between any two steps.
pub(super) const ASIDES: Beat = &[
    "{~weather}.",
    "{~time}, {~weather}, and the two friends {~pastime}.",
    "{petname} the {pet} {noise} {~how}.",
    "the {pet} {noise}, and {friend} laughed.",
    "\"I am {~mood},\" {~said} {friend}. \"[So am I|I am not|I was {~mood} too],\" {~said} {hero}.",
    "{hero} was {~mood}, but {friend} was {~mood}.",
    "{hero} felt {~mood}. {His} {~body} were [cold|wet|sore|dusty|warm].",
    "\"{~oh}!\" {~said} {friend}. \"[It is {~sky} now|That was only {petname}|I hear {elder}|My {~body} hurt].\"",
    "it was {day}, and {region} was [full of people|almost empty|very quiet|loud and bright].",
    "they walked {way} and {~pastime}.",
    "{a ~look} {~noun} [stood|lay|was hidden] {~spot}, and nobody knew [why|whose it was].",
    "{a ~animal} [slept|sat|was waiting] {~spot}. It was {~mood}.",
    "on the way they saw {a ~look} {~noun}, {~junk} and {a ~animal}.",
    "{friend} told {hero} about {a ~trait} {~animal} that [wanted to|could] {~verb} {a ~look} {~noun}.",
    "\"do you think {a ~animal} can {~verb} {a ~noun}?\" asked {hero}. \"[Never|Perhaps|Only {~how}|Ask {elder}],\" \
     {~said} {friend}.",
    "{elder} [came by|waved from a window|passed with {a ~look} cart] and {~pastime}.",
    "\"how far is it?\" asked {friend}. \"Only {n} [steps|miles|minutes|streets] more,\" {~said} {hero}.",
];

/// Sentences that no plot foresees, between any two steps.
pub(super) const EVENTS: Beat = &["{~sentence}", "{~sentence} {~Sentence}", "{~sentence} {~Sentence} {~Sentence}"];

/// How a story ends.
pub(super) const ENDINGS: Beat = &[
    "{hero} [learned|never forgot] that {~lesson}.",
    "\"{~lesson},\" said {elder}, and [everybody agreed|nobody said a word|{friend} nodded].",
    "then {hero} and {friend} went home [{way}|to {town}|in the dark|hand in hand].",
    "that night {hero} slept well[|, and {petname} slept at {his} feet].",
    "from that {day} on, {hero} and {friend} [were the best of friends|met at {region} every week|always shared their \
     {food}].",
    "and whenever {he} saw {a thing}, {hero} thought of {friend}.",
    "{town} has never seen {a ~sky} {day} like that again.",
    "and {petname}? The {pet} {noise} and [fell asleep|ate all the {food}|ran home].",
];

/// The plots, each a row of steps.
pub(super) const PLOTS: &[&[Beat]] = &[LOST, GIFT, SWAP, RACE, JOURNEY, SHARE, RESCUE, RIDDLE, BUILD, SECRET, LETTER];

const LOST: &[Beat] = &[
    &[
        "{hero} had {a thing}. [{Elder} had made it|It had come from {elder}|It once belonged to {elder}], and {he} \
         [loved to {act} it|liked to {act} it on {~sky} days].",
        "\"this {thing} is for you,\" {elder} had said. \"[You may {act} it|{Act} it] every {day}, but do not lose \
         it.\"",
        "the best thing {hero} had was {a thing}. Nobody else [was allowed to|could] {act} it.",
    ],
    &[
        "one day the {thing} was gone. {Hero} looked {~spot} and {~spot}, but found only {~junk}.",
        "but on {day} {he} could not find the {thing}. It was not {~spot}. It was not {~spot}.",
        "\"{~oh}!\" cried {hero}. \"My {thing} is gone! I left it {~spot}.\" But there was only {~junk}.",
    ],
    &[
        "\"have you seen {a thing}?\" {he} asked {elder}. \"No,\" said {elder}, \"but [ask {friend}|look near \
         {region}|your {pet} may know].\"",
        "{friend} helped to look. {Fhe} found {~junk} {~spot}, and {~junk} {~spot}, but no {noun}.",
        "\"who would take {a thing}?\" asked {friend}. \"Nobody can {act} it but you.\"",
    ],
    &[
        "{~time}, {petname} ran {way} and stopped. There, {spot}, lay the {thing}.",
        "{~time}, {friend} looked {spot}. \"Come here, {hero}!\" {fhe} called. \"Here is your {thing}!\"",
        "then {hero} remembered. {He} ran to {region} and looked {spot}, and there it was: the {thing}.",
    ],
    &[
        "\"where was the {noun}?\" asked {elder}. \"It was {spot},\" {~said} {hero}.",
        "{hero} took the {thing} home and told {elder} that it had been {spot}.",
        "\"how did it come to be {spot}?\" asked {friend}. Nobody knew[|, but {petname} looked away].",
    ],
];

const GIFT: &[Beat] = &[
    &[
        "{friend} would be {n} years old on {day}, and {hero} wanted to give {fhim} {a thing}.",
        "\"{day} is my birthday,\" said {friend}. \"I wish I had {a thing}.\"",
    ],
    &[
        "{hero} had {n} coins. {Elder} sold {a thing} for {k} coins, so {he} had {m} coins left.",
        "\"how much is the {thing}?\" {hero} asked {elder}. \"{K} coins,\" said {elder}. {Hero} had {n} coins, paid \
         {k}, and kept {m}.",
        "{he} had only {m} coins, but {elder} wanted {n} for the {thing}. {Hero} swept the floor and earned {k} more.",
    ],
    &[
        "{he} hid the {thing} {spot}, so that {friend} would not see it.",
        "{hero} put the {thing} {spot} and waited for {day}.",
    ],
    &[
        "on {day}, {hero} led {friend} {way}. \"Look {spot},\" {he} said.",
        "when {day} came, {friend} was {~mood}. \"Nobody gave me anything.\" \"Did you look {spot}?\" asked {hero}.",
    ],
    &[
        "\"{a thing}!\" {~said} {friend}. \"I will {act} it every day.\"",
        "{friend} was so {~mood} that {fhe} wanted to {act} the {noun} at once.",
        "{friend} thanked {hero} and {elder}, and everybody watched {fhim} {act} the {thing}.",
    ],
];

const SWAP: &[Beat] = &[
    &[
        "{hero} had {a thing}, and {friend} had {a thing2}.",
        "{friend} was [very |]proud of {fhis} {thing2}. {Hero} had only {a thing}.",
    ],
    &[
        "\"give me your {thing2},\" said {hero}, \"and I will give you my {thing}.\" \"[Gladly|Very well|If you \
         like],\" {~said} {friend}.",
        "\"I would rather have {a thing},\" said {friend}. \"Let us swap.\" So {friend} got the {thing}, and {hero} \
         got the {thing2}.",
    ],
    &[
        "so {hero} could {act2} the {noun2}, and {friend} could {act} the {noun}.",
        "{hero} tried to {act2} the {thing2}, but [it was hard|{he} was too {~mood}|{~weather}].",
        "{~time}, {friend} came to {act} the {thing} at {region}.",
    ],
    &[
        "soon {hero} was {~mood}. {He} missed the {thing}. \"May I have it back?\" {he} asked {friend}.",
        "but {friend} left the {thing} {spot}, and {elder} [found it|took it away|nearly fell over it].",
    ],
    &[
        "in the end, {friend} kept the {thing2} again and {hero} had the {thing}, as before.",
        "\"the {thing} is for both of us,\" said {friend}, \"and so is the {thing2}.\"",
        "{elder} laughed. \"Why not {act} the {noun} one day and {act2} the {noun2} the next?\"",
    ],
];

const RACE: &[Beat] = &[
    &[
        "on {day} there was a race to {region}. {Hero}, {friend} and {third} wanted to run.",
        "\"the first to reach {region} wins {n} {food},\" said {elder}. {Hero}, {friend} and {third} stood in a row.",
    ],
    &[
        "{elder} [blew a whistle|clapped|dropped a scarf], and they ran {way}.",
        "\"one, two, three!\" {~said} {elder}. {Third} was the fastest at first.",
    ],
    &[
        "{third} fell {spot} and hurt {~body}. {Friend} ran on, but {hero} [stopped to help|looked back|waited].",
        "{friend} took the wrong turn {spot}, and {third} lost a shoe.",
        "half way, {hero} stopped to rest {spot} and nearly fell asleep.",
    ],
    &[
        "{friend} came first, {third} came second, and {hero} came last.",
        "in the end {hero} was first, {friend} was second and {third} was third.",
        "{third} won, and {hero} and {friend} came in together.",
    ],
    &[
        "{elder} gave the winner {n} {food}. {K} of them were shared, so {m} were left.",
        "\"next {day} I shall be faster,\" {~said} [{friend}|{third}|{hero}].",
        "\"what happened {spot}?\" asked {elder}. \"[I was too {trait}|I looked at {petname}|My shoe was loose],\" \
         said {hero}.",
    ],
];

const JOURNEY: &[Beat] = &[
    &[
        "{hero} had to bring {a thing} to {elder} in {town2}, far away from {town}.",
        "\"{elder} of {town2} is waiting for this {thing},\" said {friend}. \"Will you go with me?\"",
    ],
    &["they packed {n} {food} and walked {way}.", "{he} took {n} {food}, kissed {petname}, and left on {day}."],
    &[
        "{spot}, they met a [thin|tired|lame|lost] {animal}. It {anoise}. {Hero} gave it {k} {food}, and {m} were \
         left.",
        "{a animal} sat {spot}. \"Please,\" it said, \"I have not eaten since {day}.\" So {friend} gave it {k} of the \
         {n} {food}.",
    ],
    &[
        "{~time} they lost the way, and {~weather}. But the {animal} [came back|was there again] and showed them the \
         road to {town2}.",
        "then a thief took the {thing}. The {animal} {anoise} so loudly that the thief dropped it and ran.",
        "at last they saw the lights of {town2}. The {animal} went with them to the gate.",
    ],
    &[
        "\"here is your {thing},\" said {hero}. {Elder} was so {~mood} that [{he} gave them all soup|they had to \
         {act} it at once].",
        "in {town2}, {elder} took the {thing} and asked, \"Who helped you?\" \"{A animal},\" said {friend}. \"We met \
         it {spot}.\"",
        "{elder} of {town2} thanked them, and the {animal} was allowed to stay.",
    ],
];

const SHARE: &[Beat] = &[
    &[
        "{elder} had {n} {food} and gave them to {hero}. \"[Share them well|Do not eat them all],\" {elder} said.",
        "{hero} found {n} {food} {spot}.",
        "there were {n} {food} on the table of {elder}.",
    ],
    &[
        "{friend} ate {k} {food}, so only {m} were left.",
        "{hero} gave {k} {food} to {friend} and kept {m}.",
        "{petname} the {pet} stole {k} of them. Now there were {m}.",
    ],
    &[
        "\"how many {food} were there?\" asked {elder}. \"{N},\" said {hero}, \"and now there are {m}.\"",
        "\"{m}?\" {~said} {elder}. \"There were {n}! Who took {k} of my {food}?\"",
        "{friend} counted again. {N} less {k} is {m}.",
    ],
    &[
        "\"it was {petname},\" {~said} {hero}. The {pet} {noise} and hid {~spot}.",
        "\"I was {~mood},\" said {friend}, \"and they were so sweet.\"",
        "they gave the last {m} {food} to {third}, who was {~mood}.",
    ],
    &[
        "so {elder} baked a cake, and [nobody was hungry|{friend} cut it into {n} pieces|there was enough for {third} \
         too].",
        "the next {day}, {friend} brought {k} new {food}, and there were {n} again.",
    ],
];

const RESCUE: &[Beat] = &[
    &[
        "{hero} had {a pet} called {petname}. It was [a small|a fat|an old|{a ~look}] {pet}, and it {noise} at \
         {~junk}.",
        "{petname} was the {pet} of {hero}. It had {a look} collar.",
    ],
    &[
        "one night {~weather}, and {petname} did not come home.",
        "on {day} there was a storm in {town}. {~oh}! {Petname} was gone.",
    ],
    &[
        "{hero} called and called: \"{petname}! {petname}!\" {He} looked {~spot}, but there was only {~junk}.",
        "\"have you seen {a pet}?\" {he} asked {elder}. \"[{A ~look} one|With {a look} collar]? I heard something \
         {spot}.\"",
        "{friend} lit {a ~look} lamp. \"I will look at {region},\" {fhe} said. \"You go {way}.\"",
    ],
    &[
        "{~time} they heard it: something {noise}. {Petname} sat {spot}, wet and cold.",
        "{spot}, {friend} found {a look} collar, and behind it, {petname}. The {pet} {noise}.",
    ],
    &[
        "{hero} carried {petname} home [under {his} coat|in {a thing}|on {his} shoulders].",
        "{friend} took {a thing} and pulled the {pet} out. \"Thank you,\" {~said} {hero}.",
        "\"good {pet},\" said {elder}. \"What were you doing {spot}?\" {Petname} only {noise}.",
    ],
];

const RIDDLE: &[Beat] = &[
    &[
        "{elder} of {town} knew many riddles. \"If you guess one,\" {elder} said, \"you may have my {thing}.\"",
        "the gate of {region} was shut. \"Only one who can guess may pass,\" said {elder}.",
    ],
    &["\"tell me,\" said {elder}, \"{riddle}?\"", "\"here is my riddle,\" {~said} {elder}. \"{Riddle}?\""],
    &[
        "\"is it {a thing2}?\" asked {friend}. \"No,\" said {elder}.",
        "{friend} thought of {a thing2}, but that was wrong. {Third} thought of {a animal}, but that was wrong too.",
        "\"{a animal}?\" asked {third}. {Elder} [said no|laughed|waited].",
    ],
    &[
        "{hero} {~pastime} and thought. \"It is {answer}!\" {he} {~said}.",
        "\"I know,\" {~said} {hero}. \"{Answer}!\"",
        "then {hero} saw {answer} in {his} mind, and gave the answer {~how}.",
    ],
    &[
        "\"{answer} it is,\" said {elder}, and [gave {him} the {thing}|opened the gate|bowed].",
        "\"right,\" said {elder}. \"Now ask {friend}: {riddle}?\" \"{Answer},\" said {friend}.",
        "at home, {hero} asked {petname}, \"{Riddle}?\" The {pet} {noise}.",
    ],
];

const BUILD: &[Beat] = &[
    &[
        "{hero} and {friend} wanted to build {a build} {spot}.",
        "\"we need {a build},\" said {elder}, \"[here, |]{spot}.\"",
    ],
    &[
        "{hero} brought {material}, {friend} brought {material2}, and {third} brought {a thing}.",
        "{friend} had {material2}. {Hero} had {material}. {Third} had nothing but {a thing}.",
    ],
    &[
        "they worked for {n} days. On {day} {~weather}, and the {build} fell down.",
        "{third} dropped the {material2}, and {hero} was {~mood}. \"Be careful with that,\" {he} said.",
        "after {k} hours they rested and {~pastime}. {M} hours later the {build} was ready.",
    ],
    &[
        "\"without the {material} of {hero}, we could not have done it,\" said {friend}. \"And without your \
         {material2},\" {~said} {hero}.",
        "\"who brought the {material2}?\" asked {elder}. \"{Friend} did,\" said {hero}, \"and I brought the \
         {material}.\"",
        "{third} gave {his} {thing}, and with it they mended the {build}.",
    ],
    &[
        "the {build} still stands {spot}.",
        "{petname} was the first to try the {build}. The {pet} {noise} {~how}.",
        "{elder} painted the {build} {look2}, and {town} was proud of it.",
    ],
];

const SECRET: &[Beat] = &[
    &[
        "{hero} hid {a thing} {spot}. \"Nobody may know,\" {he} told {friend}. \"The secret word is {word}.\"",
        "\"to {act} the {thing},\" said {elder}, \"you must say {word}.\" {Hero} wrote the word on {his} hand.",
    ],
    &[
        "{third} came and asked, \"What is {spot}?\" \"Nothing,\" {~said} {friend}, \"only {~junk}.\"",
        "\"say the word,\" said {hero}. \"{Word2},\" said {third}. \"No,\" {~said} {hero}, \"that is wrong.\"",
    ],
    &[
        "{~time}, {friend} went back alone and said {~how}: \"{Word}.\"",
        "\"{word},\" {~said} {friend}, and {hero} let {fhim} pass.",
        "{friend} forgot the word. Was it {word2}? No, it was {word}.",
    ],
    &[
        "{friend} took the {thing} from its place {spot} and began to {act} it.",
        "there, {spot}, was the {thing}. {Friend} smiled.",
    ],
    &[
        "\"how did you know?\" asked {third}. \"You must say {word},\" said {hero}. \"But now we need a new word.\"",
        "nobody in {town} knows what {word} means, but {hero} and {friend} do.",
        "and if you ever look {spot}, remember to say {word}.",
    ],
];

const LETTER: &[Beat] = &[
    &[
        "one {day}, {friend} got a letter from {hero}, who was in {town2}.",
        "a letter came to {town} for {friend}. It was from {hero}.",
    ],
    &[
        "\"dear {friend},\" it said, \"I am in {town2} now, with {elder}. [It is {~sky} here|Every day {~weather}|I \
         am {~mood}].",
        "\"dear {friend}, I have been in {town2} for {n} days. {Elder} is {~mood} and sends you {k} {food}.",
    ],
    &[
        "please look for my {thing}. I left it {spot}.",
        "I have bought {a thing} and will {act} it for you. Do you still have your {thing2}?",
        "there is {a animal} here which {anoise} all night. How is {petname}?",
    ],
    &[
        "I shall come home on {day}. Yours, {hero}.\"",
        "come to {town2} soon, and bring {m} {food}. Your friend, {hero}.\"",
    ],
    &[
        "{friend} read the letter {~how} and showed it to {third}. \"{Hero} is in {town2},\" {fhe} said, \"with \
         {elder}.\"",
        "{friend} went to {region} and looked {spot}, and then {fhe} wrote back to {town2}.",
        "\"when will {hero} come?\" asked {third}. \"On {day},\" said {friend}.",
    ],
];
