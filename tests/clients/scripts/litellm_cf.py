"""LiteLLM's `cloudflare/` provider: both spellings of the base, whole and streamed, an adapter, errors by class."""

import litellm
from tell import ACCOUNT, BASE, MODEL, PIRATE, QUESTION, TOKEN, V1, V4, call, raises

litellm.suppress_debug_info = True
HELLO = [{"role": "user", "content": QUESTION}]
ASK = {"model": f"cloudflare/{MODEL}", "messages": HELLO, "api_key": TOKEN, "temperature": 0, "max_tokens": 40}


def chat() -> None:
    for base in (V1, f"{V4}/accounts/{ACCOUNT}/ai/run"):
        said = litellm.completion(**ASK, api_base=base)
        assert said.choices[0].message.content == BASE, base
        assert said.usage.completion_tokens > 0


def lora() -> None:
    assert litellm.completion(**ASK, api_base=V1, lora="pirate").choices[0].message.content == PIRATE


def stream() -> None:
    pieces = list(litellm.completion(**ASK, api_base=V1, stream=True, extra_body={"lora": "pirate"}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == PIRATE


def errors() -> None:
    raises(litellm.AuthenticationError, lambda: litellm.completion(**{**ASK, "api_key": "wrong"}, api_base=V1))
    gone = raises(litellm.NotFoundError, lambda: litellm.completion(**ASK, api_base=V1, lora="nobody"))
    assert "Finetune nobody not found" in str(gone)


call("chat, both bases", chat)
call("chat with LoRA", lora)
call("stream", stream)
call("errors by class", errors)
