"""What a caller asked for as what the runtime is told about choosing tokens: defaults, what fits, where it ends."""

from collections.abc import Iterable
from typing import Final

from gateway.errors import BadInput, ContextExceeded
from gateway.messages import ChatRequest
from runtime.protocol import ModelInfo, SamplingParams

# Log-probabilities are gathered for an answer that is not streamed, and for the log: about 25 MB a request at most.
MAX_SCORES: Final = 128 * 1024


def context_length(window: int) -> str:
    """How every refusal of too long a prompt begins. In OpenAI's words: LiteLLM and agents look for them, to try again
    with less text or another model."""
    return f"This model's maximum context length is {window} tokens (its context window)"


def sampling_params(
    asked: ChatRequest, num_prompt: int, window: int, info: ModelInfo, eos_token_id: int | None
) -> SamplingParams:
    """A max_tokens that the caller set must fit; the default is cut to what is left.

    eos_token_id: the tokenizer's, beside those of the runtime's model. Raises ContextExceeded, and BadInput for token
    ids that the model does not have.
    """
    wanted, room = asked.sampling, window - num_prompt
    if wanted.max_tokens_given and wanted.max_tokens > room:
        raise ContextExceeded(
            f"{context_length(window)}, and the prompt has {num_prompt} and max_tokens is {wanted.max_tokens}: ask for "
            f"at most {room} tokens or send less text",
            param="max_tokens",
        )
    _check_ids("stop_token_ids", wanted.stop_token_ids, info.vocab_size)
    _check_ids("logit_bias", (token_id for token_id, _ in wanted.logit_bias), info.vocab_size)
    max_tokens = min(wanted.max_tokens, room)
    if wanted.top_logprobs is not None and max_tokens * wanted.n * (1 + wanted.top_logprobs) > MAX_SCORES:
        raise BadInput(
            f"AiError: Bad input: Error: max_tokens * n * (1 + top_logprobs) is over {MAX_SCORES}: ask for fewer "
            "tokens or log-probabilities",
            param="top_logprobs",
        )
    stops = set(wanted.stop_token_ids)
    if not wanted.ignore_eos:
        stops.update(info.eos_token_ids)
        if eos_token_id is not None:
            stops.add(eos_token_id)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=wanted.temperature,
        top_p=1.0 if wanted.top_p is None else wanted.top_p,
        top_k=wanted.top_k or 0,
        seed=wanted.seed,
        repetition_penalty=wanted.repetition_penalty or 1.0,
        frequency_penalty=wanted.frequency_penalty or 0.0,
        presence_penalty=wanted.presence_penalty or 0.0,
        stop_token_ids=tuple(sorted(stops)),
        min_p=wanted.min_p or 0.0,
        logit_bias=wanted.logit_bias,
        ignore_eos=wanted.ignore_eos,
        top_logprobs=wanted.top_logprobs,
    )


def _check_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token_id in token_ids:
        if token_id >= vocab_size:
            raise BadInput(
                f"AiError: Bad input: Error: '{name}' names token {token_id}; the model's token ids are 0 to "
                f"{vocab_size - 1}",
                param=name,
            )
