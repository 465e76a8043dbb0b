"""The real scheduler on the real maths: whatever it makes of a crowd, everybody says what transformers and PEFT say."""

import random
from pathlib import Path

import msgspec
import pytest
from peft import LoraConfig

from runtime.protocol import SamplingParams, Submit
from tests.runtime.asked import Asked
from tests.runtime.fakes import ref
from tests.runtime.oracle import Job, add_adapters, load_runner, make_base, oracle_logits, packed_adapter, prompts

# transformers warns of a name of its own that PEFT still uses.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")

NUM_TOKENS = 128
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
DRAWN = SamplingParams(
    max_tokens=NUM_TOKENS,
    temperature=1.0,
    top_k=40,
    top_p=0.95,
    min_p=0.001,
    repetition_penalty=1.1,
    frequency_penalty=0.2,
    presence_penalty=0.1,
    logit_bias=((3, -1.0),),
)


def crowd(vocab_size: int) -> list[Submit]:
    """Greedy and drawn, with and without adapters, of several accounts and priorities."""
    requests = []
    for number, text in enumerate(prompts(vocab_size, (37, 3, 21, 50, 12, 30))):
        sampling = GREEDY if number % 2 else msgspec.structs.replace(DRAWN, seed=number)
        adapter = (None, ref("x", rank=5), ref("y", rank=2))[number % 3]
        account, priority = "abc"[number % 3], (0, 5, -5)[number // 3]
        requests.append(
            Submit(
                number, account, tuple(text), sampling, adapter, timeout_s=600.0, priority=priority, weight=1 + number
            )
        )
    return requests


@pytest.mark.parametrize(
    ("name", "step_tokens"),
    [
        ("llama-gqa", 9),
        ("mistral-mqa-window", 24),
        ("gemma-gqa", 9),
        ("gemma2-gqa", 24),
        ("gemma3-gqa", 9),
        ("qwen2-window-tied", 24),
        ("qwen3-mqa-biases", 9),
    ],
)
def test_a_crowd_that_is_cut_mixed_and_preempted_says_what_each_would_say_alone(
    name: str, step_tokens: int, tmp_path: Path
) -> None:
    configs = {
        "x": LoraConfig(r=5, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False),
        "y": LoraConfig(r=2, lora_alpha=3, target_modules="all-linear", init_lora_weights=False),
    }
    peft_model = add_adapters(make_base(name, tmp_path), configs)
    # Two long answers fill the cache, so that six sequences are preempted again and again.
    runner = load_runner(tmp_path, block_tokens=4, kv_tokens=360)
    adapters = {key: packed_adapter(peft_model, key, runner.geometry) for key in configs}
    requests = crowd(runner.vocab_size)

    calm = Asked(runner, adapters, block_tokens=4, max_running=1, prefix_cache=False)
    alone = [calm.answers([request])[0][0] for request in requests]
    assert calm.engine.stats().preemptions == 0
    calm.leave()
    shuffled = requests.copy()
    random.Random(step_tokens).shuffle(shuffled)
    busy = Asked(runner, adapters, block_tokens=4, step_tokens=step_tokens, prefix_cache=step_tokens == 9)
    said = dict(zip((request.sequence_id for request in shuffled), busy.answers(shuffled)[0], strict=True))
    assert busy.engine.stats().preemptions >= 4
    assert [said[request.sequence_id] for request in requests] == alone
    assert len({tuple(tokens) for tokens in alone}) == len(requests)

    for request, tokens in zip(requests, alone, strict=True):
        assert len(tokens) == NUM_TOKENS
        if request.sampling is not GREEDY:
            continue
        job = Job(list(request.token_ids), answer=tokens, num_tokens=NUM_TOKENS)
        if request.adapter is None:
            with peft_model.disable_adapter():
                expected = oracle_logits(peft_model, job)
        else:
            peft_model.set_adapter(request.adapter.digest)
            expected = oracle_logits(peft_model, job)
        assert expected.argmax(-1).tolist() == tokens
