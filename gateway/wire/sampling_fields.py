"""The sampling fields of a chat body, for both dialects: ranges, defaults and bounds.

The bounds are those of `body.py`. What holds lists is bounded by its bytes before it is built.
Whether a token id exists is known only where the model is: the backend refuses those beyond its vocabulary.
"""

from typing import Any, Final

import msgspec

from gateway.messages import Dialect, Sampling
from gateway.wire.body import (
    ANY_SEED,
    ANY_TOP_K,
    ANY_TOP_P,
    MAX_BIASES,
    MAX_STOP_CHARS,
    MAX_STOP_IDS,
    MAX_STOPS,
    MAX_WHOLE,
    NULL,
    Body,
    Scalar,
)
from gateway.wire.chat_body import bad, flag, number, whole

# Generous for the longest honest spelling of these counts.
_MAX_BIAS_BYTES: Final = 32 * 1024
_MAX_STOP_ID_BYTES: Final = 4 * 1024
_BIAS_SENTENCE: Final = f"'logit_bias' must map at most {MAX_BIASES} token ids to numbers from -100 to 100"
_LEAST_TOP_P: Final = 1e-6
_DEFAULTS: Final = Sampling()
_STOP_ID_SENTENCE: Final = f"'stop_token_ids' must be a list of at most {MAX_STOP_IDS} token ids"


def sampling(body: Body, dialect: Dialect) -> Sampling:
    """Ranges and defaults of the contract; the other dialects have some wider. Raises BadInput."""
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = whole("max_tokens", limit)
    temperature = number("temperature", body.temperature)
    return Sampling(
        max_tokens=_DEFAULTS.max_tokens if max_tokens is None else max_tokens,
        max_tokens_given=max_tokens is not None,
        temperature=_DEFAULTS.temperature if temperature is None else temperature,
        top_p=number("top_p", body.top_p) if dialect == "workers_ai" else _any_top_p(body.top_p),
        top_k=whole("top_k", body.top_k, ANY_TOP_K if dialect == "anthropic" else None) or None,
        seed=whole("seed", body.seed, None if dialect == "workers_ai" else ANY_SEED),
        repetition_penalty=number("repetition_penalty", body.repetition_penalty),
        frequency_penalty=number("frequency_penalty", body.frequency_penalty),
        presence_penalty=number("presence_penalty", body.presence_penalty),
        stop=_stops(body.stop),
        stop_token_ids=_stop_ids(body.stop_token_ids),
        ignore_eos=flag("ignore_eos", body.ignore_eos),
        min_p=number("min_p", body.min_p),
        logit_bias=_biases(body.logit_bias),
        top_logprobs=_top_logprobs(body),
        n=whole("n", body.n) or 1,
    )


def _any_top_p(value: Scalar) -> float | None:
    """0 keeps the best token alone, as the least share does that the runtime knows."""
    share = number("top_p", value, ANY_TOP_P)
    return None if share is None else max(share, _LEAST_TOP_P)


def _top_logprobs(body: Body) -> int | None:
    count = whole("top_logprobs", body.top_logprobs)
    if flag("logprobs", body.logprobs):
        return count or 0
    if count:
        bad("'top_logprobs' needs 'logprobs' to be true", "top_logprobs")
    return None


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS or not all(1 <= len(one) <= MAX_STOP_CHARS for one in stops):
        bad(f"'stop' must be a string, or at most {MAX_STOPS} strings, of 1 to {MAX_STOP_CHARS} characters", "stop")
    return tuple(stops)


def _stop_ids(raw: msgspec.Raw) -> tuple[int, ...]:
    value = _built("stop_token_ids", raw, _MAX_STOP_ID_BYTES, _STOP_ID_SENTENCE)
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_STOP_IDS or not all(map(_is_token_id, value)):
        bad(_STOP_ID_SENTENCE, "stop_token_ids")
    return tuple(value)


def _biases(raw: msgspec.Raw) -> tuple[tuple[int, float], ...]:
    value = _built("logit_bias", raw, _MAX_BIAS_BYTES, _BIAS_SENTENCE)
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        bad(_BIAS_SENTENCE, "logit_bias")
    biases: dict[int, float] = {}
    for key, bias in value.items():
        if not (key.isascii() and key.isdecimal() and len(key) <= 10) or int(key) > MAX_WHOLE:
            bad(f"{_BIAS_SENTENCE}; a key is not a token id", "logit_bias")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            bad(f"{_BIAS_SENTENCE}; the value of {key} is not one", "logit_bias")
        biases[int(key)] = float(bias)
    return tuple(biases.items())


def _built(name: str, raw: msgspec.Raw, max_bytes: int, sentence: str) -> Any:
    """The value behind `raw`, which was seen to be sound JSON; nesting is still to be feared."""
    if raw is NULL:
        return None
    if len(memoryview(raw)) > max_bytes:
        bad(sentence, name)
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        bad(sentence, name)


def _is_token_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WHOLE
