"""Log-probabilities: transformers' own on the demo base, whatever the sampling; nothing for rows that do not ask."""

import math
from typing import Any

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from gateway.demo import BASE_FOLDER
from runtime.batch import BASE_SLOT, Batch, Row, Sampled, Scored
from runtime.codec import decode_server, encode
from runtime.logprobs import scored
from runtime.protocol import SamplingParams, SequenceOutput, Step, TokenScore
from runtime.runner import TorchRunner
from runtime.stream import Stream
from tests.runtime.fakes import FakeRunner, submit
from tests.runtime.rig import Rig
from tests.runtime.rows import changed

torch.set_num_threads(1)


def row(sampling: SamplingParams, **changes: Any) -> Row:
    return changed(Row(5, (0,), 0, (0,), BASE_SLOT, True, sampling, (0, 1), 1, 1), **changes)


@pytest.fixture(scope="module")
def runner() -> TorchRunner:
    return TorchRunner.load(
        BASE_FOLDER, device="cpu", dtype="float32", threads=1, kv_bytes=2**23, block_tokens=16, adapter_rows=16
    )


def test_they_are_transformers_own_on_the_demo_base(runner: TorchRunner) -> None:
    model = AutoModelForCausalLM.from_pretrained(BASE_FOLDER, dtype=torch.float32).eval()
    prompts = [(1, 300, 17, 512, 40), (1, 77, 901), (1, 5, 6, 7, 8, 9, 10)]
    wishes = [
        SamplingParams(temperature=0.0, top_logprobs=20),
        SamplingParams(temperature=2.0, top_k=3, logit_bias=((11, 100.0),), top_logprobs=0),
        SamplingParams(temperature=1.5, repetition_penalty=2.0, top_logprobs=3),
    ]
    rows = tuple(
        Row(index, prompt, 0, (index,), BASE_SLOT, True, wish, prompt, len(prompt), index)
        for index, (prompt, wish) in enumerate(zip(prompts, wishes, strict=True))
    )
    for prompt, wish, found in zip(prompts, wishes, runner.execute(Batch(rows)), strict=True):
        assert isinstance(found, Scored)
        with torch.no_grad():
            theirs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        assert found.score.logprob == pytest.approx(float(theirs[found.token_id]), abs=1e-4)
        count = wish.top_logprobs
        assert count is not None
        values, words = theirs.topk(count)
        assert [token for token, _ in found.score.top] == words.tolist()
        assert [value for _, value in found.score.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_the_chosen_token_is_the_first_of_the_top_when_greedy(runner: TorchRunner) -> None:
    (found,) = runner.execute(
        Batch((row(SamplingParams(temperature=0.0, top_logprobs=2), token_ids=(1, 9), history=(1, 9)),))
    )
    assert isinstance(found, Scored)
    assert found.score.top[0] == (found.token_id, found.score.logprob)
    assert len(found.score.top) == 2


def test_only_rows_that_ask_are_scored() -> None:
    plain, asks = SamplingParams(), SamplingParams(top_logprobs=1)
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
    rows = [row(asks if index % 2 else plain) for index in range(20)]
    found = scored(logits, rows, list(range(9)) * 2 + [0, 1])
    assert [isinstance(item, Scored) for item in found] == [bool(index % 2) for index in range(20)]
    assert scored(logits, [row(plain)] * 20, [3] * 20) == [3] * 20
    for index, item in enumerate(found):
        if isinstance(item, Scored):
            shares = logits[index].double().log_softmax(-1)
            assert item.score.logprob == pytest.approx(float(shares[item.token_id]), abs=1e-5)
            ((best, share),) = item.score.top
            assert best == int(shares.argmax())
            assert share == pytest.approx(float(shares.max()), abs=1e-5)


def test_more_is_asked_than_there_are_words_and_some_have_no_chance() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    (found,) = scored(logits, [row(SamplingParams(top_logprobs=20))], [0])
    assert isinstance(found, Scored)
    assert len(found.score.top) == 3
    assert found.score.top[-1] == (1, -9999.0)
    assert found.score.logprob == pytest.approx(math.log(0.5))


async def test_the_engine_and_the_stream_hand_them_on() -> None:
    class Scores(FakeRunner):
        def execute(self, batch: Batch) -> list[Sampled]:  # type: ignore[override]
            return [Scored(token, TokenScore(-token / 10, ((token, -0.5),))) for token in super().execute(batch)]

    rig = Rig()
    rig.use(Scores())
    request = submit(1, max_tokens=3)
    rig.submit(msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, top_logprobs=1)))
    rig.run()
    stream = Stream()
    for output in rig.outputs[1, 1]:
        frame = decode_server(encode(Step((output,)))[4:])
        assert frame == Step((output,))
        stream.put(frame.outputs[0])
    merged = await stream.get()
    assert len(merged.token_ids) == 3
    assert merged.scores == tuple(TokenScore(-token / 10, ((token, -0.5),)) for token in merged.token_ids)


def test_an_output_without_scores_costs_no_bytes() -> None:
    plain = encode(Step((SequenceOutput(1, (5,)),)))
    assert b"scores" not in plain
    assert len(encode(Step((SequenceOutput(1, (5,), scores=(TokenScore(-1.0),)),)))) > len(plain)
