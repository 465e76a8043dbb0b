"""On the real maths: who begins with cached blocks says the same as who computes all, and as transformers and PEFT."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from runtime.protocol import SamplingParams, Submit
from tests.runtime.asked import Asked
from tests.runtime.fakes import ref
from tests.runtime.oracle import (
    GREEDY,
    Job,
    add_adapters,
    load_runner,
    make_base,
    oracle_logits,
    packed_adapter,
    prompts,
)

# transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

DEMO = Path(__file__).parents[2] / "gateway" / "demo" / "data" / "base"
NUM_TOKENS = 20
DRAWN = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=5)


def _greedy(length: int) -> SamplingParams:
    return SamplingParams(max_tokens=length, temperature=GREEDY.temperature)


@pytest.mark.parametrize("name", ["demo", "llama-gqa", "mistral-window", "gemma2-gqa", "gemma3-gqa"])
def test_warm_answers_equal_cold_ones_and_the_oracle(name: str, tmp_path: Path) -> None:
    if name == "demo":
        model, runner = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), load_runner(DEMO)
    else:
        model, runner = make_base(name, tmp_path), load_runner(tmp_path)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False)
    peft_model = add_adapters(model, {"x": config})
    adapters = {"x": packed_adapter(peft_model, "x", runner.geometry)}
    system, *questions = prompts(runner.vocab_size, (53, 9, 16, 1, 30))
    texts = [tuple(system + question) for question in questions]
    requests = [
        Submit(0, "a", text, sampling, ref("x", rank=4) if adapted else None)
        for text in texts
        for sampling in (_greedy(NUM_TOKENS), DRAWN)
        for adapted in (False, True)
    ]
    requests = [Submit(i, r.account_id, r.token_ids, r.sampling, r.adapter) for i, r in enumerate(requests)]

    off = Asked(runner, adapters, prefix_cache=False)
    cold = [off.answers([request])[0][0] for request in requests]
    assert off.engine.stats().prefix_hit_tokens == 0
    off.leave()
    on = Asked(runner, adapters, step_tokens=40)
    one_by_one = [on.answers([request]) for request in requests]
    again = on.answers(requests)
    assert [tokens[0] for tokens, _ in one_by_one] == cold == again[0]
    assert [ends[0].cached_tokens for _, ends in one_by_one[:4]] == [0, 0, 48, 48]
    assert all(end.cached_tokens >= 48 for _, ends in one_by_one[4:] for end in ends)
    assert all(
        end.cached_tokens == (len(r.token_ids) - 1) // 16 * 16 for end, r in zip(again[1], requests, strict=True)
    )
    assert len({tuple(tokens) for tokens in cold}) > 8  # or the comparison would prove nothing

    for request, tokens in zip(requests, again[0], strict=True):
        if request.sampling is not DRAWN:
            job = Job(list(request.token_ids), answer=tokens, num_tokens=NUM_TOKENS)
            if request.adapter is None:
                with peft_model.disable_adapter():
                    assert oracle_logits(peft_model, job).argmax(-1).tolist() == tokens
            else:
                assert oracle_logits(peft_model, job).argmax(-1).tolist() == tokens
