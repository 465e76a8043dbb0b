"""A real engine on random weights with a tokenizer made on the spot: what it says is noise, but for its grammar.

The model has more words than its tokenizer, and two end tokens, one of which the tokenizer does not know as one.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from runtime.device_runner import DeviceRunner
from runtime.engine import Engine, EngineLimits
from runtime.grammars.compiler import GrammarCompiler
from runtime.grammars.constraint import Prepared
from runtime.protocol import Grammar, ModelInfo, SamplingParams, SequenceOutput, Submit
from runtime.runner import TorchRunner
from tests.gateway.text.folders import byte_level
from tests.runtime.fakes import FakeLoads

EOS = (1, 3)


def make_talker(folder: Path, tokenizer: Callable[[Path], Path] = byte_level) -> Path:
    """A model folder."""
    tokenizer(folder)
    words = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    config = LlamaConfig(
        vocab_size=words + 13,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=list(EOS),
        bos_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(5)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class Talker:
    """One engine; `say` runs it until everything has ended."""

    def __init__(
        self, folder: Path, runner: DeviceRunner | None = None, /, *, num_blocks: int = 256, **limits: Any
    ) -> None:
        kv_bytes = num_blocks * 2 * 2 * 2 * 8 * 4 * 16
        self.runner = runner or TorchRunner.load(
            folder, device="cpu", dtype="float32", threads=1, kv_bytes=kv_bytes, block_tokens=16, adapter_rows=16
        )
        self.model = ModelInfo(
            "m", "float32", "cpu", 1, self.runner.vocab_size, self.runner.max_sequence_tokens, 16, EOS
        )
        self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.compiler = GrammarCompiler(folder / "tokenizer.json", self.runner.vocab_size, EOS)
        self.now = 0.0
        self.engine = Engine(
            self.runner, self.model, EngineLimits(num_blocks, 16, 16, **limits), FakeLoads(), lambda: self.now
        )
        self.outputs: dict[int, list[SequenceOutput]] = defaultdict(list)
        self._compiled: dict[Grammar, Prepared] = {}

    def ask(self, number: int, grammar: Grammar | None, prompt: str = "user asks", **sampling: Any) -> None:
        """Submits sequence `number`; every grammar is compiled once."""
        wanted = SamplingParams(**{"max_tokens": 200, "temperature": 1.5, "seed": number, **sampling})
        request = Submit(number, "a", tuple(self.words.encode(prompt).ids), wanted, grammar=grammar)
        constraint = None
        if grammar is not None:
            if grammar not in self._compiled:
                self._compiled[grammar] = self.compiler.compile(grammar)
            constraint = self._compiled[grammar].start()
        self.engine.submit(1, request, constraint)

    def step(self) -> bool:
        self.now += 0.01
        result = self.engine.step()
        for item in result.outputs:
            self.outputs[item.output.sequence_id].append(item.output)
        return result.progressed

    def run(self) -> None:
        for _ in range(3000):
            if not self.step():
                return
        raise AssertionError("it does not end")

    def tokens(self, number: int) -> list[int]:
        return [token for output in self.outputs[number] for token in output.token_ids]

    def text(self, number: int) -> str:
        text: str = self.words.decode(self.tokens(number), skip_special_tokens=False)
        return text

    def last(self, number: int) -> SequenceOutput:
        return self.outputs[number][-1]
