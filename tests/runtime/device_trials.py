"""What is tried of the device's runner: on a GPU at sizes of its own, tiny in the interpreter. Needs no fixtures."""

from collections.abc import Callable, Sequence

import torch

from runtime.batch import BASE_SLOT, PENDING, Batch, Row
from runtime.device_runner import DeviceRunner
from runtime.protocol import SamplingParams
from tests.runtime.oracle import GREEDY, Job, prompts
from tests.runtime.rows import changed

DRAWN = SamplingParams(temperature=0.9, top_p=0.9, top_k=40)


def jobs_for(runner: DeviceRunner, slots: Sequence[int], length: int, num_tokens: int, block_tokens: int) -> list[Job]:
    """One a slot, prompts of unlike lengths, every third one drawn; each with blocks of its own for all its tokens."""
    texts = prompts(runner.vocab_size, [max(1, length - 3 * index) for index in range(len(slots))])
    jobs, taken = [], 0
    for index, (slot, text) in enumerate(zip(slots, texts, strict=True)):
        count = -(-(len(text) + num_tokens) // block_tokens)
        sampling = DRAWN if index % 3 == 2 else GREEDY
        blocks = list(range(taken, taken + count))
        jobs.append(Job(text, slot=slot, num_tokens=num_tokens, sampling=sampling, seed=index, blocks=blocks))
        taken += count
    assert taken <= runner.num_blocks
    return jobs


def talk(
    runner: DeviceRunner, jobs: Sequence[Job], *, ahead: bool, between: Callable[[int], None] = lambda step: None
) -> list[torch.Tensor]:
    """Whole prompts in one step, then a token of each a step. The logits of every step where the host waits for it;
    `ahead` it reads a step when the next one has been launched."""
    order = sorted(range(len(jobs)), key=lambda index: jobs[index].slot)
    logits: list[torch.Tensor] = []
    flight = None
    for step in range(jobs[0].num_tokens):
        between(step)
        launched = runner.launch(Batch(tuple(_row(jobs[index], index, step, ahead=ahead) for index in order)))
        if ahead and flight is not None:
            _hear(runner, jobs, order, flight)
        if not ahead:
            _hear(runner, jobs, order, launched)
            logits.append(runner.last_logits(len(jobs)))
        flight = launched
    if ahead:
        _hear(runner, jobs, order, flight)
    return logits


def _row(job: Job, index: int, step: int, *, ahead: bool) -> Row:
    history = [*job.prompt, *job.answer, *([PENDING] if ahead and step else [])]
    job.computed = len(history) - 1 if step else 0
    row = job.next_row(index)
    return changed(row, token_ids=history[job.computed :], start=job.computed, samples=True, history=history)


def _hear(runner: DeviceRunner, jobs: Sequence[Job], order: Sequence[int], flight: object) -> None:
    for index, found in zip(order, runner.finish(flight), strict=True):  # type: ignore[arg-type]  # its own record
        assert isinstance(found, int)
        jobs[index].answer.append(found)


def assert_same(
    runner: DeviceRunner, other: DeviceRunner, slots: Sequence[int], length: int, steps: int, block_tokens: int
) -> None:
    """Both give the same logits, bit for bit, and the same tokens, at every step."""
    mine, theirs = (jobs_for(each, slots, length, steps, block_tokens) for each in (runner, other))
    found, expected = talk(runner, mine, ahead=False), talk(other, theirs, ahead=False)
    for step, (one, two) in enumerate(zip(found, expected, strict=True)):
        assert torch.isfinite(one).all()
        assert torch.equal(one, two), f"step {step}: {float((one.float() - two.float()).abs().max())}"
    assert [job.answer for job in mine] == [job.answer for job in theirs]


def mixed_slots(adapters: Sequence[int], rows: int) -> list[int]:
    """Some base rows, then the adapters in turns."""
    turns = [BASE_SLOT, *adapters]
    return [turns[index % len(turns)] for index in range(rows)]
