"""Small random models and adapters made by transformers and PEFT, and a driver that decodes with our runner.

The driver owns blocks and order only: the real scheduler has its own tests. Its greedy tokens are compared with the
oracle by one forward pass over prompt and answer: if every argmax agrees, so does the oracle's own greedy text.
"""

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from runtime.batch import BASE_SLOT, Batch, Row
from runtime.device_runner import DeviceRunner
from runtime.protocol import SamplingParams
from runtime.runner import TorchRunner
from storage.geometry import MODULES, Geometry
from storage.packed import AdapterDtype, LoraMatrices, Packed, read_packed, write_packed
from tests.runtime.bases import CONFIGS

GREEDY = SamplingParams(temperature=0.0)


def make_base(name: str, folder: Path, seed: int = 7) -> PreTrainedModel:
    """A random model of this family, saved to `folder` in fp32."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    config.initializer_range = 0.25  # large enough that attention and argmax are decided, not near ties
    build: Any = AutoModelForCausalLM.from_config  # untyped in transformers
    model = build(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith(".bias"):
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    assert isinstance(model, PreTrainedModel)
    return model


def load_runner(
    folder: Path,
    *,
    block_tokens: int = 16,
    dtype: str = "float32",
    kv_tokens: int = 4096,
    adapter_rows: int = 128,
    threads: int = 1,
) -> TorchRunner:
    """A runner with room for `kv_tokens` tokens or a little more."""
    geometry = Geometry.from_folder(folder)
    cell = geometry.num_layers * 2 * geometry.num_kv_heads * geometry.head_dim * 4
    return TorchRunner.load(
        folder,
        device="cpu",
        dtype=dtype,
        threads=threads,
        kv_bytes=cell * (kv_tokens + block_tokens),
        block_tokens=block_tokens,
        adapter_rows=adapter_rows,
        max_slots=8,
    )


def add_adapters(model: PreTrainedModel, configs: dict[str, LoraConfig], seed: int = 3) -> PeftModel:
    """The model with random adapters of these names (A and B both non-zero)."""
    torch.manual_seed(seed)
    first, *others = configs.items()
    peft_model = get_peft_model(model, first[1], adapter_name=first[0])
    for name, config in others:
        peft_model.add_adapter(name, config)
    assert isinstance(peft_model, PeftModel)
    return peft_model.eval()


def packed_adapter(
    model: PeftModel, name: str, geometry: Geometry, dtype: AdapterDtype = "float32", *, huge: bool = False
) -> Packed:
    """The packed file of one adapter, with the scalings that PEFT computed; `huge` puts 3e38 into A."""

    def array(weight: torch.Tensor) -> Any:
        values = weight.detach()
        return values.bfloat16().view(torch.uint16).numpy() if dtype == "bfloat16" else values.numpy()

    matrices = []
    for path, module in model.named_modules():
        if name in getattr(module, "lora_A", {}):
            leaf = path.rsplit(".", 1)[1]
            assert leaf in MODULES
            layer = int(path.split(".layers.")[1].split(".")[0])
            a, b = array(module.lora_A[name].weight), array(module.lora_B[name].weight)
            a = np.full_like(a, 3e38) if huge else a
            matrices.append(LoraMatrices(layer, leaf, float(module.scaling[name]), a, b))
    out = io.BytesIO()
    write_packed(out, geometry, dtype, matrices)
    return read_packed(out.getvalue())


@dataclass
class Job:
    """One sequence for the driver; `chunk` tokens of the prompt per step, 0 for all at once."""

    prompt: list[int]
    slot: int = BASE_SLOT
    num_tokens: int = 24
    chunk: int = 0
    arrives: int = 0
    sampling: SamplingParams = GREEDY
    seed: int = 0
    answer: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    def next_row(self, index: int) -> Row:
        history = self.prompt + self.answer
        end = min(len(history), self.computed + (self.chunk or len(history)))
        tokens = history[self.computed : end]
        return Row(
            sequence_id=index,
            token_ids=tokens,
            start=self.computed,
            block_table=self.blocks,
            slot=self.slot,
            samples=end == len(history),
            sampling=self.sampling,
            history=history,
            prompt_tokens=len(self.prompt),
            seed=self.seed,
        )


def decode(
    runner: TorchRunner | DeviceRunner,
    jobs: Sequence[Job],
    *,
    block_tokens: int,
    order: int = 0,
    preempt_at: Sequence[int] = (),
) -> list[list[int]]:
    """Runs all jobs to their end in shared steps and returns the answers, in the order of `jobs`.

    `order` seeds the choice of blocks and the order of rows within a slot. Before each step of `preempt_at` one live
    job loses its blocks and starts over: what it has said so far becomes part of its prompt.
    """
    shuffle = random.Random(order)
    free = list(range(runner.num_blocks))
    shuffle.shuffle(free)
    step = 0
    while any(len(job.answer) < job.num_tokens for job in jobs):
        live = [(i, job) for i, job in enumerate(jobs) if len(job.answer) < job.num_tokens and job.arrives <= step]
        shuffle.shuffle(live)
        if live and step in preempt_at:
            victim = live[0][1]
            free.extend(victim.blocks)
            shuffle.shuffle(free)
            victim.blocks, victim.computed = [], 0
        live.sort(key=lambda item: item[1].slot)
        rows = []
        for index, job in live:
            while len(job.blocks) * block_tokens < len(job.prompt) + len(job.answer):
                job.blocks.append(free.pop())
            rows.append(job.next_row(index))
        step += 1
        if not rows:
            continue
        batch = Batch(tuple(rows))
        if isinstance(runner, DeviceRunner):  # interpreted, so every step counts
            tokens = [token for token in runner.execute(batch) if isinstance(token, int)]
            logits = runner.last_logits(len(tokens))
        else:
            logits = runner.logits(batch)
            # The same step once more: repeating a step must change nothing.
            tokens = [token for token in runner.execute(batch) if isinstance(token, int)]
        sampled = iter(zip(logits, tokens, strict=True))
        for (_, job), row in zip(live, rows, strict=True):
            job.computed += len(row.token_ids)
            if row.samples:
                line, token = next(sampled)
                job.logits.append(line)
                job.answer.append(token)
            if len(job.answer) == job.num_tokens:
                free.extend(job.blocks)
                shuffle.shuffle(free)
    return [job.answer for job in jobs]


@torch.no_grad()
def oracle_logits(model: Any, job: Job) -> torch.Tensor:
    """[answer tokens, vocab]: what the oracle would say at each of the job's decode steps, given the same tokens."""
    tokens = torch.tensor([job.prompt + job.answer[:-1]])
    logits: torch.Tensor = model(tokens).logits[0, len(job.prompt) - 1 :]
    return logits


def assert_agrees(model: Any, job: Job, tolerance: float = 1e-4) -> None:
    """Logits of every step within `tolerance` (norm-relative), and the greedy answer token by token."""
    expected, found = oracle_logits(model, job).float(), torch.stack(job.logits).float()
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) < tolerance, f"step {int(error.argmax())}: {float(error.max()):.2e}"
    assert expected.argmax(-1).tolist() == job.answer


def prompts(vocab_size: int, lengths: Iterable[int], seed: int = 1) -> list[list[int]]:
    """Random prompts of these lengths."""
    generator = random.Random(seed)
    return [[generator.randrange(vocab_size) for _ in range(length)] for length in lengths]
