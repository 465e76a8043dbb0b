"""Reads an answer's pieces and puts together what a caller would."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.messages import Tool
from gateway.text.tool_calls.base import Parsed, Parser
from gateway.text.tool_calls.formats import FORMATS

TOOLS = (Tool("tide_at"), Tool("now"), Tool("a.b-c_9"))


@dataclass
class Read:
    """What came: `calls` are (name, arguments) in order, `pieces` how many pieces each came in."""

    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    spent: str = ""
    num_whole: int = 0
    is_half_told: bool = False

    def take(self, parsed: Parsed) -> None:
        """What the parser gives next."""
        self.text += parsed.text
        self.spent += parsed.spent
        for call in parsed.calls:
            if call.index == len(self.calls):
                assert call.id is not None
                assert call.name is not None
                self.calls.append((call.name, call.arguments))
                self.ids.append(call.id)
                self.pieces.append(1)
            else:
                assert (call.index, call.id, call.name) == (len(self.calls) - 1, None, None)
                assert call.arguments
                name, arguments = self.calls[-1]
                self.calls[-1] = (name, arguments + call.arguments)
                self.pieces[-1] += 1


def parser_of(name: str, *, eager: bool = False, at_most_one: bool = False) -> Parser:
    return next(f for f in FORMATS if f.name == name).parser(TOOLS, eager=eager, at_most_one=at_most_one)


def read(name: str, pieces: Iterable[str], *, eager: bool = False, at_most_one: bool = False) -> Read:
    parser, got = parser_of(name, eager=eager, at_most_one=at_most_one), Read()
    for piece in pieces:
        got.take(parser.push(piece))
    got.take(parser.flush())
    got.num_whole, got.is_half_told = parser.num_whole, parser.is_half_told
    return got
