"""What stands ready while one model in one type is measured: its folder, and a child per side once it is asked.

A child that cannot start is remembered with its reason: asking again fails at once. All children end with the stage.
"""

import contextlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

from infra.bench.children import ROOT, THREADS, Child, ChildFailed
from infra.bench.shapes import DISTINCT, RANKS, AdapterShape, Shape
from runtime.memory_plan import ITEM_BYTES
from runtime.model_size import DType, ModelSize

PEERS: Final = ROOT / "peers" / "llama" / "bin" / "python"
NO_PEERS: Final = "llama.cpp is not built here: make bench-peers (about seven minutes)"
# By the type that we compute in and the one that we hold weights in. llama.cpp computes in what its file has: beside
# ours in fp32 its f32 does the same arithmetic, and its bf16 reads as many bytes.
GGUF_KINDS: Final[dict[tuple[str, str], tuple[str, ...]]] = {
    ("float32", "float32"): ("f32",),
    ("float32", "bfloat16"): ("f32", "bf16"),
    ("bfloat16", "bfloat16"): ("bf16", "f16"),
}
SHORT: Final = {"float32": "fp32", "bfloat16": "bf16"}


class Stage:
    """Use as a context manager. `folder` is what `folders.make_folders` made."""

    def __init__(self, shape: Shape, dtype: str, folder: Path, logs: Path) -> None:
        self.shape, self.dtype, self.folder, self._logs = shape, dtype, folder, logs
        self._children: dict[str, Child] = {}
        self._failed: dict[str, str] = {}
        self._stack = contextlib.ExitStack()
        self._random = random.Random(f"{shape.name} {dtype}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def prefix(self) -> str:
        """The beginning of its metrics' names."""
        return f"{self.shape.name}.{SHORT[self.dtype]}"

    @property
    def held(self) -> DType:
        """What our side holds the weights in."""
        return ModelSize.from_folder(self.folder / "model").held_as(cast(DType, self.dtype))

    @property
    def weight_bytes(self) -> int:
        """Of the weights as they are held: what a step reads."""
        return self.shape.num_weights * ITEM_BYTES[self.held]

    @property
    def held_note(self) -> str:
        """For rows of ours; "" where computing and holding are one."""
        return "" if self.held == self.dtype else f"file and our weights {self.held}, all else {self.dtype}"

    @property
    def gguf_kinds(self) -> tuple[str, ...]:
        """What llama.cpp runs beside us; the first is the closest to what we compute."""
        return GGUF_KINDS[self.dtype, self.held]

    def prompts(self, count: int, tokens: int) -> list[list[int]]:
        """Fresh random prompts: nobody's cache has seen them."""
        return [[self._random.randrange(3, self.shape.vocab) for _ in range(tokens)] for _ in range(count)]

    def ours(self) -> Child:
        """The engine in process."""
        return self._child("ours", "infra.bench.engine_child", [str(self.folder), self.dtype])

    def service(self) -> Child:
        """A runtime process behind its socket."""
        return self._child("served", "infra.bench.service_child", [str(self.folder), self.dtype])

    def memory(self, num_bytes: int) -> Child:
        """Reads so many bytes per "token"."""
        return self._child("memory", "infra.bench.memory_child", [str(num_bytes)])

    def transformers(self) -> Child:
        """The base alone."""
        return self._child("transformers", "infra.bench.transformers_child", [str(self.folder), self.dtype])

    def peft(self, adapters: tuple[AdapterShape, ...] = DISTINCT) -> Child:
        """The base with these eight adapters (`DISTINCT` or `RANKS`)."""
        name = "peft-ranks" if adapters is RANKS else "peft"
        names = [adapter.name for adapter in adapters]
        return self._child(name, "infra.bench.transformers_child", [str(self.folder), self.dtype, *names])

    def llama(self, kind: str, *, exact: bool = False) -> Child:
        """llama.cpp on the model in this type; `exact` as in `llama_child.py`."""
        arguments = [str(self.gguf(kind)), "--threads", str(THREADS), *(["--exact"] if exact else [])]
        name = f"llama.cpp-{kind}{'-exact' if exact else ''}"
        return self._child(name, "infra.bench.llama_child", arguments, python=str(PEERS))

    def gguf(self, kind: str, adapter: str | None = None) -> Path:
        """The model or an adapter as GGUF, converted when it is not there. Raises ChildFailed."""
        if not PEERS.exists():
            raise ChildFailed(NO_PEERS)
        out = self.folder / "gguf" / f"{adapter or 'model'}-{kind}.gguf"
        if out.exists():
            return out
        out.parent.mkdir(exist_ok=True)
        what, source = ("model", "model") if adapter is None else ("adapter", f"adapters/{adapter}")
        heads = ["--heads", str(self.shape.heads), "--kv-heads", str(self.shape.kv_heads)]
        command = [str(PEERS), "-m", "infra.bench.gguf_files", what, str(self.folder / source), kind, str(out), *heads]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            raise ChildFailed(f"conversion to GGUF: {done.stderr.strip().splitlines()[-1:]}")
        return out

    def _child(self, name: str, module: str, arguments: list[str], python: str = sys.executable) -> Child:
        if name in self._failed:
            raise ChildFailed(self._failed[name])
        if name not in self._children:
            try:
                child = Child(f"{self.prefix}.{name}", module, arguments, self._logs, python)
            except ChildFailed as error:
                self._failed[name] = str(error)
                raise
            self._children[name] = self._stack.enter_context(child)
        return self._children[name]
