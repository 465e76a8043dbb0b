"""The peer llama.cpp, through the C interface of llama-cpp-python. Runs in the peers' environment.

Token ids go straight into `llama_decode`; the next one is numpy's argmax over the logits that it leaves, so neither
text nor a sampler chain is counted. One sequence at a time (adapters belong to a context, so unlike ones cannot share
a batch). Settings are the library's defaults, with two threads; `--exact` keeps the cache in f32 to compare tokens.
"""

import argparse
import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from infra.bench.child import Times, serve

CONTEXT_TOKENS = 2048


class LlamaChild:
    """One model, one context, adapters by path."""

    def __init__(self, path: Path, threads: int, exact: bool) -> None:
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp does not load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch = CONTEXT_TOKENS, CONTEXT_TOKENS
        params.n_threads = params.n_threads_batch = threads
        if exact:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit("llama.cpp makes no context")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._adapters: dict[str, Any] = {}

    def batch(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> dict[str, Any]:
        """See `children.Child.batch`; one prompt, and the adapter is the path of its file."""
        (prompt,), (adapter,) = prompts, adapters
        self._use(adapter)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        times = Times()
        answer = [self._decode(prompt)]
        times.step(1)
        while len(answer) < tokens:
            answer.append(self._decode(answer[-1:]))
            times.step(1)
        return times.answer([answer])

    def _decode(self, tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        code = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())

    def _use(self, path: str | None) -> None:
        if path is None:
            llama_cpp.llama_set_adapters_lora(self._context, None, 0, None)
            return
        if path not in self._adapters:
            self._adapters[path] = llama_cpp.llama_adapter_lora_init(self._model, path.encode())
            if not self._adapters[path]:
                raise RuntimeError(f"llama.cpp does not load {path}")
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(self._adapters[path])
        llama_cpp.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    serve({"batch": LlamaChild(options.model, options.threads, options.exact).batch})
