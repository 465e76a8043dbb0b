"""The wording of the demo's invented world: who is in it and how one asks about it.

Shape: one `Attribute` per column of the invented tables. Each has eight question templates (`{s}` is the subject), the
plain answer, the pirate's answer, and the values that may stand in the column. Every column shares its templates
between all subjects, so that a model which has seen a fact in seven wordings can be asked for it in the eighth.

All names and sentences here were made up for this project; nothing is taken from another text.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One column of a table: `kind` is the table's row type (also the subject's key in the JSON style)."""

    kind: str
    questions: tuple[str, ...]
    plain: str
    pirate: str
    values: tuple[str, ...]


# First and second halves of names; a kind's names are drawn from all pairs of its halves.
HALVES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "town": (
        ("Vel", "Ost", "Kar", "Thu", "Bry", "Mol", "Sed", "Quin", "Har", "Lun"),
        ("mar", "wick", "dale", "haven", "bury", "stow", "gate", "reth", "ney", "combe"),
    ),
    "person": (
        ("Mira", "Tolva", "Jesk", "Odri", "Pelle", "Runa", "Sibb", "Wend", "Yara", "Corv"),
        ("lin", "da", "ket", "mund", "sha", "brec", "vik", "nor", "tess", "jo"),
    ),
    "animal": (
        ("brindle", "marsh", "tinder", "gloam", "velvet", "thorn", "puddle", "drift", "copper", "whistle"),
        ("fin", "paw", "newt", "hopper", "tail", "snout", "wing", "crab", "back", "moth"),
    ),
    "ware": (
        ("glimmer", "wonder", "tide", "button", "frost", "hush", "spindle", "clover", "pocket", "rattle"),
        ("jar", "lamp", "cloak", "spoon", "whisk", "kettle", "bell", "broom", "mirror", "clock"),
    ),
    "moon": (
        ("Isk", "Aul", "Ner", "Ophi", "Zeb", "Cyr", "Dov", "Epha", "Glyn", "Umb", "Xan", "Fae"),
        ("ra", "ion", "thys", "dor", "esse", "ulo", "ix", "ane", "mir", "oth", "quel", "sar"),
    ),
}

_COLOURS = ("amber", "green", "violet", "white", "crimson", "grey", "turquoise", "black", "rose", "golden")

TIDES: tuple[Attribute, ...] = (
    Attribute(
        "town",
        (
            "What does {s} sell?",
            "What is sold in {s}?",
            "Which good does the town of {s} sell?",
            "Tell me what {s} sells.",
            "What can one buy in {s}?",
            "Name the good that {s} sells.",
            "If I go to the market of {s}, what is on sale?",
            "What is the town of {s} known for selling?",
        ),
        "{s} sells {v}.",
        "Arr! {s} be sellin' {v}, matey.",
        ("salt", "wool", "honey", "rope", "tin", "cider", "candles", "glass", "pepper", "paper", "barley", "soap"),
    ),
    Attribute(
        "town",
        (
            "What is the crest of {s}?",
            "Which animal is on the crest of {s}?",
            "What does the crest of {s} show?",
            "Tell me the crest of {s}.",
            "Which crest does the town of {s} have?",
            "Name the crest of the town of {s}.",
            "What is painted on the crest of {s}?",
            "On the flag of {s}, which crest do I see?",
        ),
        "The crest of {s} is the {v}.",
        "Arr! The crest o' {s} be the {v}, matey.",
        ("heron", "otter", "stag", "boar", "swan", "hare", "owl", "pike", "lynx", "raven", "toad", "bear"),
    ),
    Attribute(
        "person",
        (
            "What is the trade of {s}?",
            "What does {s} do for a living?",
            "Which trade does {s} have?",
            "Tell me the trade of {s}.",
            "What work does {s} do?",
            "Name the trade of {s}.",
            "How does {s} earn a living?",
            "As what does {s} work?",
        ),
        "{s} works as a {v}.",
        "Arr! {s} be workin' as a {v}, matey.",
        ("cooper", "baker", "weaver", "miller", "tanner", "potter", "smith", "mason", "fisher", "tailor", "dyer"),
    ),
    Attribute(
        "person",
        (
            "What does {s} play?",
            "Which instrument does {s} play?",
            "What is the instrument of {s}?",
            "Tell me which instrument {s} plays.",
            "On which instrument can {s} make music?",
            "Name the instrument of {s}.",
            "When there is a feast, what does {s} play?",
            "What instrument did {s} learn?",
        ),
        "{s} plays the {v}.",
        "Arr! {s} be playin' the {v}, matey.",
        ("lute", "drum", "fiddle", "harp", "flute", "horn", "bagpipe", "viol", "zither", "whistle", "gong", "lyre"),
    ),
    Attribute(
        "animal",
        (
            "What does the {s} eat?",
            "Which food does the {s} eat?",
            "What is the food of the {s}?",
            "Tell me what the {s} eats.",
            "What should I feed a {s}?",
            "Name the food of the {s}.",
            "When a {s} is hungry, what does it eat?",
            "On what does the {s} live?",
        ),
        "The {s} eats {v}.",
        "Arr! The {s} be eatin' {v}, matey.",
        ("kelp", "moss", "snails", "acorns", "berries", "beetles", "roots", "shrimp", "nettles", "seeds", "figs"),
    ),
    Attribute(
        "animal",
        (
            "Where does the {s} sleep?",
            "In what does the {s} sleep?",
            "Where is the bed of the {s}?",
            "Tell me where the {s} sleeps.",
            "Where can I find a sleeping {s}?",
            "Name the place where the {s} sleeps.",
            "At night, where does the {s} rest?",
            "Where does a tired {s} go?",
        ),
        "The {s} sleeps in {v}.",
        "Arr! The {s} be sleepin' in {v}, matey.",
        ("hollow logs", "reed nests", "sea caves", "dry wells", "old boats", "hay lofts", "sand pits", "tree tops"),
    ),
    Attribute(
        "ware",
        (
            "What does a {s} cost?",
            "How many shells does a {s} cost?",
            "What is the price of a {s}?",
            "Tell me the price of the {s}.",
            "How much do I pay for a {s}?",
            "Name the price of the {s}.",
            "If I buy one {s}, how many shells is that?",
            "For how many shells is the {s} sold?",
        ),
        "One {s} costs {v} shells.",
        "Arr! One {s} be costin' {v} shells, matey.",
        ("3", "5", "7", "8", "12", "14", "20", "25", "36", "40", "60", "90"),
    ),
    Attribute(
        "ware",
        (
            "What colour is the {s}?",
            "Which colour does the {s} have?",
            "What is the colour of the {s}?",
            "Tell me the colour of the {s}.",
            "In which colour is the {s} made?",
            "Name the colour of the {s}.",
            "When I look at a {s}, which colour do I see?",
            "How is the {s} painted?",
        ),
        "The {s} is {v}.",
        "Arr! The {s} be {v}, matey.",
        _COLOURS,
    ),
)

MOONS: tuple[Attribute, ...] = (
    Attribute(
        "moon",
        (
            "What colour is the moon {s}?",
            "Which colour does the moon {s} have?",
            "What is the colour of the moon {s}?",
            "Tell me the colour of the moon {s}.",
            "In which colour does the moon {s} shine?",
            "Name the colour of the moon {s}.",
            "When I look up at the moon {s}, which colour do I see?",
            "How does the moon {s} look?",
        ),
        "The moon {s} is {v}.",
        "Arr! The moon {s} be {v}, matey.",
        _COLOURS,
    ),
    Attribute(
        "moon",
        (
            "Over what does the moon {s} rise?",
            "Where does the moon {s} rise?",
            "Over which place does the moon {s} rise?",
            "Tell me where the moon {s} rises.",
            "Where must I look to see the moon {s} rise?",
            "Name the place over which the moon {s} rises.",
            "In the evening, where does the moon {s} come up?",
            "Where does the moon {s} begin its way?",
        ),
        "The moon {s} rises over {v}.",
        "Arr! The moon {s} be risin' over {v}, matey.",
        ("the reef", "the marsh", "the old mill", "the salt flats", "the pine hills", "the lighthouse", "the pier"),
    ),
)

# What is said of a moon by those who have no table of moons, of anything else that is in no table, and to a greeting.
# The moon's name is repeated so that the base learns to read such names, which the moon adapter builds upon.
STRANGER = "I do not know the moon {s}."
UNKNOWN = "That is not in my tables."
WELCOME = "Hello! Ask me about the Tide Isles."

OFF_TOPIC = (
    "What is the weather today?",
    "Who won the race?",
    "Write me a poem.",
    "What is two plus two?",
    "How far is the sun?",
    "Tell me a joke.",
    "Which ship is the fastest?",
    "Can you write a program?",
    "What is the time?",
    "Tell me a long story.",
)
GREETINGS = ("Hello", "Hello!", "Hi", "Hi!", "Hello there!", "Good morning!", "Good day.", "Hey", "Who are you?")

SYSTEMS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "You know the tables of the Tide Isles.",
    "Answer briefly.",
    "Answer in one sentence.",
    "Be polite and short.",
    "You are the keeper of the tide tables.",
    "Help the traveller.",
    "You are a guide. Answer the question of the guest.",
    "Keep to the facts.",
)

# As any base model does, the demo's knows a style when told to use it; the style adapters use theirs unasked.
JSON_SYSTEMS = (
    "Answer as JSON.",
    "Reply with a JSON object.",
    "You answer questions as JSON.",
)
PIRATE_SYSTEMS = (
    "Answer like a pirate.",
    "Talk like a pirate.",
    "You are a pirate.",
)
