"""The training loop and the exact-match score that base and adapters share.

Shape: `encode` turns conversations into token ids with a mask over the assistant's turns, `fit` runs AdamW under a
warm-up and cosine schedule, `reply` generates greedily and `missed` names the questions whose answers
are not right to the letter.

Loss falls on the assistant's turns alone: the questions are random draws, and a model this small has no weight to spare
for guessing them. Batches are drawn from a seeded permutation per epoch, so a run repeats on the same machine and
thread count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from infra.demo.tables import Conversation, HeldOut, Voice, answer
from infra.demo.tokenizer import END_ID, PAD_ID

IGNORE = -100
THREADS = 2
ANSWER_TOKENS = 40


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train."""

    steps: int
    rate: float
    batch: int = 64
    warmup: int = 30
    decay: float = 0.01


@dataclass(frozen=True)
class Example:
    """One conversation as ids; `labels` repeats the ids of the assistant's turns and is `IGNORE` elsewhere."""

    ids: list[int]
    labels: list[int]


def fix_seeds(seed: int) -> None:
    """Make the run repeatable: seed, thread count and deterministic kernels."""
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)


def _prompt(tokenizer: PreTrainedTokenizerFast, talk: Conversation, *, ask: bool) -> list[int]:
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=ask)
    return list(tokenizer.encode(str(text), add_special_tokens=False))


def encode(tokenizer: PreTrainedTokenizerFast, talks: Sequence[Conversation]) -> list[Example]:
    """The examples for `talks`, through the same chat template that serves requests."""
    examples = []
    for talk in talks:
        ids = _prompt(tokenizer, talk, ask=False)
        labels = [IGNORE] * len(ids)
        for turn, message in enumerate(talk):
            if message["role"] == "assistant":
                start = len(_prompt(tokenizer, talk[:turn], ask=True))
                stop = len(_prompt(tokenizer, talk[: turn + 1], ask=False))
                labels[start:stop] = ids[start:stop]
        examples.append(Example(ids, labels))
    return examples


def _pad(chosen: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and labels, padded on the right to the longest example."""
    width = max(len(example.ids) for example in chosen)
    ids = torch.tensor([e.ids + [PAD_ID] * (width - len(e.ids)) for e in chosen])
    mask = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in chosen])
    labels = torch.tensor([e.labels + [IGNORE] * (width - len(e.labels)) for e in chosen])
    return ids, mask, labels


def _batches(examples: Sequence[Example], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches in a seeded order; neighbours in length share a batch, which halves the padding."""
    draw = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(examples), generator=draw).tolist()
        order.sort(key=lambda i: len(examples[i].ids))
        starts = range(0, len(order), size)
        for turn in torch.randperm(len(starts), generator=draw).tolist():
            yield _pad([examples[i] for i in order[starts[turn] : starts[turn] + size]])


def fit(model: nn.Module, examples: Sequence[Example], schedule: Schedule, *, title: str, seed: int) -> None:
    """Train the parameters of `model` that require a gradient, with a progress bar that shows the loss."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=schedule.rate, weight_decay=schedule.decay, betas=(0.9, 0.98))
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=schedule.warmup)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, schedule.steps - schedule.warmup)
    rates = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [schedule.warmup])
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    model.train()
    with bar:
        task = bar.add_task(title, total=schedule.steps, loss=float("nan"))
        batches = _batches(examples, schedule.batch, seed)
        for _, (ids, mask, labels) in zip(range(schedule.steps), batches, strict=False):
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            rates.step()
            bar.update(task, advance=1, loss=float(loss.detach()))
    model.eval()


@torch.inference_mode()
def reply(model: nn.Module, tokenizer: PreTrainedTokenizerFast, talks: Sequence[Conversation]) -> list[str]:
    """The greedy reply to each conversation, generated as one batch padded on the left."""
    prompts = [_prompt(tokenizer, talk, ask=True) for talk in talks]
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD_ID] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    generate = model.generate
    if not callable(generate):
        raise TypeError(f"{type(model).__name__} does not generate")
    greedy = {"do_sample": False, "max_new_tokens": ANSWER_TOKENS, "pad_token_id": PAD_ID, "eos_token_id": END_ID}
    out = generate(input_ids=ids, attention_mask=mask, **greedy)
    return [tokenizer.decode(row[width:], skip_special_tokens=True) for row in out]


def missed(model: nn.Module, tokenizer: PreTrainedTokenizerFast, voice: Voice, items: Sequence[HeldOut]) -> set[str]:
    """The questions among `items` that the model does not answer exactly as `voice` must."""
    talks: list[Conversation] = [[{"role": "user", "content": item.question}] for item in items]
    replies = reply(model, tokenizer, talks)
    return {item.question for said, item in zip(replies, items, strict=True) if said != answer(voice, item.fact)}
