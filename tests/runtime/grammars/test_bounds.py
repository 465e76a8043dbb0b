"""Bounds beyond what the library computes with: kept, or refused; never cut in silence."""

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import GrammarInvalid
from runtime.grammars.bounds import unkept
from runtime.grammars.compiler import GrammarCompiler
from runtime.protocol import Grammar
from tests.gateway.text.folders import byte_level


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 10**30, "maximum": 10**30 + 1},
        {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 3},
        {"type": "integer", "minimum": 0, "maximum": 2**53 + 3},
        {"type": "integer", "minimum": -(10**30), "maximum": -(10**29)},
        {"type": "integer", "exclusiveMinimum": 2**53},
        {"type": "integer", "exclusiveMaximum": 1e300},
        {"type": "object", "properties": {"enum": {"items": [{"anyOf": [{"minimum": 1e19}]}]}}},
    ],
)
def test_a_bound_that_would_be_cut_is_refused(tmp_path: Path, schema: dict[str, Any]) -> None:
    tokenizer = byte_level(tmp_path) / "tokenizer.json"
    with pytest.raises(GrammarInvalid, match=r"a bound that cannot be enforced: .* too large"):
        GrammarCompiler(tokenizer, 400, (1,)).compile(Grammar("json_schema", json.dumps(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": -(2**53) + 1, "maximum": 2**53 - 1},
        {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
        {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "number", "minimum": 0.1, "exclusiveMaximum": 1.5},
        {"enum": [{"minimum": 10**30}]},
        {"type": "object", "properties": {"minimum": {"type": "integer", "default": 1}, "maximum": True}},
        {"minimum": "1", "maximum": None},
    ],
)
def test_others_are_the_librarys_affair(schema: dict[str, Any]) -> None:
    assert unkept(schema) is None
