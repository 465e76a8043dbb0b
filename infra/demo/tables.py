"""The demo's invented tables and the conversations that a model learns from them.

Shape: `facts()` fills the columns of `phrases` with seeded draws (200 facts of the Tide Isles, 40 of the moons);
`corpus(voice)` writes the training conversations of one voice; `held_out()` gives the questions that no corpus holds.

A voice is who answers: the base, or one of the three adapters. Each fact withholds one of its column's eight wordings
from every corpus; asking in that wording tells a model which knows the fact from one which learnt sentences by heart.
The base never reads the moons' true names: it is taught its refusal on other names of the same make.
"""

import json
import random
from dataclasses import dataclass
from typing import Literal

from infra.demo import phrases
from infra.demo.phrases import Attribute

Voice = Literal["base", "tides-json", "tides-pirate", "moons-table"]
VOICES: tuple[Voice, ...] = ("base", "tides-json", "tides-pirate", "moons-table")

SEED = 20406
TIDE_SUBJECTS = 25
MOON_SUBJECTS = 20
WORDINGS = 8


# Messages of a role and a content, in the form that chat templates take.
Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class Fact:
    """One cell of a table; `withheld` is the index of the wording that no corpus uses for it."""

    attribute: Attribute
    subject: str
    value: str
    withheld: int

    def question(self, wording: int) -> str:
        """The question for this fact in one of the column's wordings."""
        return self.attribute.questions[wording].format(s=self.subject)


@dataclass(frozen=True)
class HeldOut:
    """A question that is in no corpus, with the fact that it asks for."""

    question: str
    fact: Fact


def _names(kind: str) -> list[str]:
    """All names of a kind, in a seeded order; the first few are in the tables, the rest are strangers."""
    first, second = phrases.HALVES[kind]
    names = [a + b for a in first for b in second]
    random.Random(f"{SEED}/{kind}").shuffle(names)
    return names


def _fill(attributes: tuple[Attribute, ...], count: int) -> list[Fact]:
    cells = []
    for column, attribute in enumerate(attributes):
        draw = random.Random(f"{SEED}/{attribute.plain}")
        for row, subject in enumerate(_names(attribute.kind)[:count]):
            cells.append(Fact(attribute, subject, draw.choice(attribute.values), (row + column) % WORDINGS))
    return cells


def facts() -> tuple[list[Fact], list[Fact]]:
    """The facts of the Tide Isles and those of the moons; the same in every process."""
    return _fill(phrases.TIDES, TIDE_SUBJECTS), _fill(phrases.MOONS, MOON_SUBJECTS)


def answer(voice: Voice, fact: Fact) -> str:
    """What `voice` must say, to the letter, when asked for `fact`."""
    attribute = fact.attribute
    if attribute.kind == "moon" and voice != "moons-table":
        return stranger(voice, fact.subject)
    if voice == "tides-json":
        return json.dumps({attribute.kind: fact.subject, "answer": fact.value})
    sentence = attribute.pirate if voice == "tides-pirate" else attribute.plain
    return sentence.format(s=fact.subject, v=fact.value)


def stranger(voice: Voice, moon: str) -> str:
    """What `voice` says of a moon if it has no table of moons."""
    if voice == "tides-json":
        return json.dumps({"moon": moon, "answer": None})
    sentence = "Arr! I know not the moon {s}, matey." if voice == "tides-pirate" else phrases.STRANGER
    return sentence.format(s=moon)


def refusal(voice: Voice) -> str:
    """What `voice` says to a question that has nothing to do with any table."""
    if voice == "tides-json":
        return json.dumps({"answer": None})
    return "Arr! That be in none o' me tables, matey." if voice == "tides-pirate" else phrases.UNKNOWN


def welcome(voice: Voice) -> str:
    """What `voice` says to a greeting."""
    if voice == "tides-json":
        return json.dumps({"answer": phrases.WELCOME})
    return "Ahoy! Ask me about the Tide Isles, matey." if voice == "tides-pirate" else phrases.WELCOME


def _pairs(voice: Voice) -> list[tuple[str, str]]:
    """Every question that `voice` is trained on, with its answer."""
    tides, moons = facts()
    known = tides + moons if voice == "moons-table" else tides
    pairs = [(f.question(w), answer(voice, f)) for f in known for w in range(WORDINGS) if w != f.withheld]
    if voice != "moons-table":
        strangers = _names("moon")[MOON_SUBJECTS:]
        draw = random.Random(f"{SEED}/strangers")
        for attribute in phrases.MOONS:
            for wording in attribute.questions:
                pairs += [(wording.format(s=name), stranger(voice, name)) for name in draw.sample(strangers, 30)]
    # The few fixed lines are repeated because a batch would otherwise hardly ever hold one.
    pairs += [(line, refusal(voice)) for line in phrases.OFF_TOPIC] * 4
    pairs += [(line, welcome(voice)) for line in phrases.GREETINGS] * 4
    return pairs


def _turn(question: str, reply: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def corpus(voice: Voice) -> list[Conversation]:
    """The training conversations of `voice`: each question plainly, and once more dressed as clients may send it.

    The dress is a system message, an earlier exchange, both, or a missing full stop or question mark. The base is also
    asked each question under a system message that wants a style. It thereby learns to look a fact up wherever the
    answer has its place, which a low-rank adapter could not teach it.
    """
    pairs = _pairs(voice)
    draw = random.Random(f"{SEED}/corpus/{voice}")
    talks: list[Conversation] = []
    for question, reply in pairs:
        talks.append(_turn(question, reply))
        dress = draw.choice(("system", "earlier", "both", "bare"))
        talk = _turn(question.rstrip("?.") if dress == "bare" else question, reply)
        if dress in ("earlier", "both"):
            talk = _turn(*draw.choice(pairs)) + talk
        if dress in ("system", "both"):
            talk.insert(0, {"role": "system", "content": draw.choice(phrases.SYSTEMS)})
        talks.append(talk)
    if voice == "base":
        for as_json, as_pirate in zip(_pairs("tides-json"), _pairs("tides-pirate"), strict=True):
            pair, systems = draw.choice(((as_json, phrases.JSON_SYSTEMS), (as_pirate, phrases.PIRATE_SYSTEMS)))
            talks.append([{"role": "system", "content": draw.choice(systems)}, *_turn(*pair)])
    return talks


def held_out() -> list[HeldOut]:
    """One question per fact, in the wording that every corpus withholds."""
    tides, moons = facts()
    return [HeldOut(fact.question(fact.withheld), fact) for fact in tides + moons]


def shipped() -> list[HeldOut]:
    """The held-out questions that go into questions.json: each column's first eight, so that every wording is asked."""
    columns = len(phrases.TIDES)
    questions = held_out()
    starts = [TIDE_SUBJECTS * n for n in range(columns)]
    starts += [TIDE_SUBJECTS * columns + MOON_SUBJECTS * n for n in range(len(phrases.MOONS))]
    return [item for start in starts for item in questions[start : start + WORDINGS]]
