"""Schemas written to do harm: each gets its verdict in seconds, in a process that dies of it instead of the runtime."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import GrammarInvalid
from runtime.grammars.sandbox import Sandbox
from runtime.protocol import MAX_GRAMMAR_BYTES, Grammar
from tests.gateway.text.folders import byte_level


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("tokenizer")) / "tokenizer.json"


@pytest.fixture(scope="module")
def sandbox(tokenizer: Path) -> Iterator[Sandbox]:
    box = Sandbox(tokenizer, 400, (1,))
    yield box
    box.close()


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", value if isinstance(value, str) else json.dumps(value))


def nested(levels: int, value: Any) -> Any:
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}, "required": ["a"]}
    return value


def doubling(word: str, levels: int) -> dict[str, Any]:
    """2 ** levels schemas, written in a line each."""
    parts = {f"p{i}": {word: [{"$ref": f"#/$defs/p{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**parts, f"p{levels}": {"type": "object"}}, "$ref": "#/$defs/p0"}


HARD = {
    "deep": nested(60, {"type": "string"}),
    "a long enum": {"enum": [f"value number {index}" for index in range(4000)]},
    "many properties": {"type": "object", "properties": {f"p{index}": {} for index in range(3000)}},
    "repeated repetition": {"type": "string", "pattern": "^(a{1,1000}){1,1000}$"},
    "catastrophic": {"type": "string", "pattern": "^(a|a)*b(a|aa)*(x+x+)+y$"},
    "exponential": {"type": "string", "pattern": "^(.*a.{200}).*b.{300}$"},
    "long": {"type": "string", "minLength": 10**6, "maxLength": 10**9},
    "many items": {"type": "array", "items": {"type": "object"}, "minItems": 10**6, "maxItems": 10**9},
    "a tree": {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
    "doubling": doubling("allOf", 30),
    "doubling choices": doubling("anyOf", 30),
}


@pytest.mark.parametrize("name", HARD)
def test_the_hard_ones_are_cheap_or_refused(sandbox: Sandbox, name: str) -> None:
    began = time.monotonic()
    with contextlib.suppress(GrammarInvalid):
        assert sandbox.try_out(schema(HARD[name])) < 192 * 1024**2
    assert time.monotonic() - began < 15
    sandbox.try_out(schema({"type": "object"}))


@pytest.mark.parametrize(
    "value",
    [
        {"type": "integer", "multipleOf": 99_999_989},
        {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]},
    ],
)
def test_what_never_ends_or_takes_all_memory_is_given_up(sandbox: Sandbox, value: Any) -> None:
    """Forty bytes that would take minutes, gigabytes, or both."""
    began = time.monotonic()
    with pytest.raises(GrammarInvalid, match="too much time or memory"):
        sandbox.try_out(schema(value))
    assert time.monotonic() - began < 15
    assert sandbox.try_out(schema({"type": "object"})) >= 0, "and the next one is tried as if nothing had been"


REFUSED = [
    ("", "not JSON"), ("{", "not JSON"), ("[]", "must be a JSON object"), ("true", "must be a JSON object"),
    ("[" * 100_000, "nested too deeply"), ('{"items":' * 200 + "{}" + "}" * 200, "recursion limit"),
    ({"$ref": "#"}, "nothing satisfies it"), ({"$ref": "https://example.com/a.json"}, "does not fetch"),
    ({"$ref": "file:///etc/passwd"}, "does not fetch"), ({"type": "banana"}, "banana"),
    ({"type": "object", "not": {}}, 'cannot be enforced: "not"'),
    ({"type": "array", "uniqueItems": True, "contains": {}}, '"uniqueItems"'),
    ({"type": "object", "uniqueItems": True, "x-guidance": {"lenient": True}}, '"uniqueItems"'),
    ({"type": "object", "properties": {"a": False}, "required": ["a"]}, "required property 'a' is unsatisfiable"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"), ({"type": "string", "format": "sonnet"}, "sonnet"),
    ({"enum": ["x" * MAX_GRAMMAR_BYTES]}, "longer than"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "reason"), REFUSED)
def test_the_reason_is_a_clause_for_the_caller(sandbox: Sandbox, value: Any, reason: str) -> None:
    with pytest.raises(GrammarInvalid, match=reason) as caught:
        sandbox.try_out(schema(value))
    assert caught.value.lasting
    assert len(str(caught.value)) <= 300
    assert str(caught.value).isprintable()


def test_lark_is_tried_out_too(sandbox: Sandbox) -> None:
    assert sandbox.try_out(Grammar("lark", 'start: <[2]> "a"+ "b"')) >= 0
    for text in ("start: (", "nothing here", "start: <no_such_token>"):
        with pytest.raises(GrammarInvalid):
            sandbox.try_out(Grammar("lark", text))


def test_a_process_that_was_killed_is_replaced(tokenizer: Path) -> None:
    box = Sandbox(tokenizer, 400, (1,))
    try:
        box.try_out(schema({"type": "object"}))
        (first,) = box._idle
        os.kill(first.pid, signal.SIGKILL)
        first.wait(10)
        with pytest.raises(GrammarInvalid) as caught:
            box.try_out(schema({"type": "object"}))
        assert not caught.value.lasting
        assert box.try_out(schema({"type": "object"})) >= 0
        (second,) = box._idle
        assert second.pid != first.pid
    finally:
        box.close()
    assert second.poll() is not None


def test_closing_ends_calls_under_way(tokenizer: Path) -> None:
    box = Sandbox(tokenizer, 400, (1,))
    ended: list[GrammarInvalid] = []

    def call() -> None:
        try:
            box.try_out(schema({"type": "integer", "multipleOf": 99_999_989}))
        except GrammarInvalid as error:
            ended.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    until = time.monotonic() + 10
    while not box._busy:  # a trial's process tells nobody that it has begun
        assert time.monotonic() < until, ended
        time.sleep(0.005)
    began = time.monotonic()
    box.close()
    thread.join(10)
    assert not thread.is_alive()
    assert time.monotonic() - began < 5
    assert [error.lasting for error in ended] == [False]
    with pytest.raises(GrammarInvalid):
        box.try_out(schema({"type": "object"}))


@pytest.mark.parametrize(("text", "reason"), [(None, "no readable tokenizer.json"), ("{}", "cannot be used")])
def test_a_folder_without_a_usable_tokenizer(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    box = Sandbox(tmp_path / "tokenizer.json", 400, (1,))
    try:
        for _ in range(2):
            with pytest.raises(GrammarInvalid, match=reason):
                box.try_out(schema({"type": "object"}))
    finally:
        box.close()
