"""Whatever arrives as a body, a dialect gives a valid request or says in one typed sentence what is wrong."""

import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import BadInput, LorikeetError
from gateway.messages import ChatRequest, Chunk, Usage
from gateway.wire import anthropic_body, body, completions, openai, responses_body, sse, workers_ai

FIELDS = {
    name
    for kind in (body.Body, responses_body.ResponsesBody, responses_body.Item, anthropic_body.MessagesBody)
    for name in kind.__struct_fields__
}
NAMES = st.sampled_from([*sorted(FIELDS), "unknown", "role", "content"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
    | st.sampled_from(["user", "true", "1", "x" * 300]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
TURNS = st.lists(st.fixed_dictionaries({"role": VALUES, "content": VALUES}), max_size=3)


def checked(request: ChatRequest) -> None:
    """What every later part may rely on."""
    sampling = request.sampling
    assert (request.prompt is None) != (request.messages is None)
    assert request.prompt is None or request.prompt
    assert request.messages is None or request.messages
    assert 1 <= sampling.max_tokens <= body.MAX_WHOLE
    assert 0 <= sampling.temperature <= 5
    assert sampling.top_k is None or 1 <= sampling.top_k <= 50
    assert sampling.top_p is None or (0.001 if request.dialect == "workers_ai" else 1e-6) <= sampling.top_p <= 1
    assert sampling.seed is None or 0 <= sampling.seed < 2**63
    assert len(sampling.stop) <= 4
    assert all(sampling.stop)
    assert sampling.min_p is None or 0 <= sampling.min_p <= 1
    assert len(sampling.logit_bias) <= 300
    assert all(0 <= token <= body.MAX_WHOLE and -100 <= bias <= 100 for token, bias in sampling.logit_bias)
    assert len(sampling.stop_token_ids) <= 64
    assert 1 <= sampling.n <= (8 if request.dialect == "openai" else 1)
    assert sampling.top_logprobs is None or (0 <= sampling.top_logprobs <= 20 and request.dialect == "openai")
    assert all(0 <= token <= body.MAX_WHOLE for token in sampling.stop_token_ids)
    assert request.lora is None or request.lora
    assert -100 <= request.priority <= 100


def outcome(parse: Callable[[], ChatRequest]) -> None:
    """A sound request or a typed refusal; every other exception passes through and fails the test."""
    error: LorikeetError | None = None
    try:
        checked(parse())
    except LorikeetError as refusal:
        error = refusal
    if error is not None:
        assert error.status == 400
        assert error.message


@given(st.dictionaries(NAMES, VALUES | TURNS, max_size=6), st.lists(st.tuples(NAMES, st.text(max_size=6)), max_size=4))
def test_any_object(sent: dict[str, Any], query: list[tuple[str, str]]) -> None:
    data = json.dumps(sent).encode()
    outcome(lambda: workers_ai.parse(data, query, "m"))
    outcome(lambda: openai.parse(data, query))
    outcome(lambda: completions.parse(data, query))
    outcome(lambda: responses_body.parse(data, query)[0])
    outcome(lambda: anthropic_body.parse(data, query))


@given(st.binary(max_size=200) | st.text(alphabet='{}[]":,0123456789.eE+-truefalsnu \\x', max_size=60).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    outcome(lambda: workers_ai.parse(data, [], "m"))


@given(st.text())
def test_text_survives_both_dialects_and_the_stream(text: str) -> None:
    text = text.encode("utf-8", "replace").decode() or "x"
    native = workers_ai.WorkersAIReply().piece(Chunk(text))
    standard = openai.OpenAIReply("id", 1).piece(Chunk(text))
    for event in (native, standard):
        assert event.startswith(b"data: ")
        assert event.endswith(b"\n\n")
        assert event.count(b"\n") == 2
    assert json.loads(native[6:])["response"] == text
    assert json.loads(standard[6:])["choices"][0]["delta"]["content"] == text


@pytest.mark.parametrize(
    "data",
    [
        b"{" + b",".join(b'"k%d":1' % index for index in range(600_000)) + b"}",
        b'{"zzz":[' + b"1," * 4_000_000 + b'1],"prompt":"x"}',
        b'{"temperature":[' + b"{}," * 2_000_000 + b"{}]}",
        b'{"tools":[' + b"{}," * 2_000_000 + b"{}]}",
        b'{"stop_token_ids":[' + b"1," * 4_000_000 + b"1]}",
        b'{"logit_bias":{' + b",".join(b'"%d":1' % index for index in range(600_000)) + b"}}",
    ],
)
def test_a_large_body_does_not_hold_up_the_loop(data: bytes) -> None:
    started = time.process_time()
    with contextlib.nullcontext() if b"prompt" in data else pytest.raises(BadInput):
        workers_ai.parse(data, [], "m")
    assert time.process_time() - started < 0.2


def test_usage_is_said_once_and_cached_tokens_only_if_there_are_any() -> None:
    reply = workers_ai.WorkersAIReply()
    assert b"cached" not in reply.ending(Chunk("", "stop"), Usage(3, 2))
    assert b'"prompt_tokens_details":{"cached_tokens":1}' in reply.ending(Chunk("", "stop"), Usage(3, 2, 1))
    assert sse.DONE == b"data: [DONE]\n\n"


def test_the_role_is_said_even_when_nothing_else_is() -> None:
    reply = openai.OpenAIReply("id", 1)
    chunk, done = [part[6:] for part in reply.ending(Chunk("", "stop"), Usage(1, 0)).split(b"\n\n") if part]
    assert done == b"[DONE]"
    assert json.loads(chunk)["choices"][0]["delta"]["role"] == "assistant"


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4), st.integers(0, 7), st.text(max_size=20))
def test_a_plain_piece_is_what_the_encoder_would_have_said(texts: list[str], index: int, model: str) -> None:
    """Later pieces are put together from parts; the first one is encoded as a whole."""
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    reply = openai.OpenAIReply("id", 1)
    reply.describe(ChatRequest("openai", model.encode("utf-8", "replace").decode()))
    first, *rest = [json.loads(reply.piece(Chunk(text, index=index))[6:]) for text in texts]
    assert first["choices"][0]["delta"].pop("role") == "assistant"
    for event, text in zip([first, *rest], texts, strict=True):
        assert event == {**first, "choices": [{**first["choices"][0], "delta": {"content": text}}]}
