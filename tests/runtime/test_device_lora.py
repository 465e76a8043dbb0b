"""The order in which a projection group's work enters the queues: a fork before the base product, a join behind the
adapters' part, whatever happens between."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.segments import DeviceSegments
from runtime.layers import device_lora
from runtime.layers.adapter_pool import AdapterPool
from runtime.layers.device_lora import DeviceLora, Product
from runtime.models.random_weights import fill_with_random
from runtime.queues import Queues
from storage.geometry import Geometry

GEOMETRY = Geometry("llama", 1, 16, 16, 4, 2, 4)


class Queue:
    """Writes down what is asked of it; what runs within `use` is its own."""

    def __init__(self, name: str, said: list[str], current: list[str]) -> None:
        self.name, self._said, self._current = name, said, current

    @contextmanager
    def use(self) -> Iterator[None]:
        self._current.append(self.name)
        try:
            yield
        finally:
            self._current.pop()

    def mark(self) -> Any:
        self._said.append(f"mark {self.name}")
        return SimpleNamespace(of=self.name)

    def after(self, mark: Any) -> None:
        self._said.append(f"{self.name} after {mark.of}")


class Rig:
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.said, current = list[str](), ["compute"]
        compute, copies, beside = (Queue(name, self.said, current) for name in ("compute", "copies", "beside"))
        pool = AdapterPool(GEOMETRY, 32, 4, torch.float32, torch.device("cpu"))
        fill_with_random(pool, 0, 0, 8, 1)
        self.lora = DeviceLora(pool, Queues(compute, copies, beside))
        self.wrong: str | None = None

        def note(name: str) -> Any:
            real = getattr(device_lora, name)

            def noted(*arguments: Any, **more: Any) -> Any:
                self.said.append(f"{name} in {current[-1]}")
                if self.wrong == name:
                    raise RuntimeError("the compiler refuses")
                return real(*arguments, **more)

            return noted

        for name in ("_base", "lora_shrink", "lora_expand"):
            patch.setattr(device_lora, name, note(name))

    def product(self, *, is_decode: bool) -> Product:
        words = torch.full((6, 16), -1, dtype=torch.int32)
        words[:, 0] = torch.tensor([1, 1, 0, 0, 8, 0b1111111])
        segments = DeviceSegments(words, 1, 1, 3, 16)
        step: Any = SimpleNamespace(segments=segments, groups=0b1111, is_decode=is_decode)
        linear: Any = SimpleNamespace(layer=0, group=0, weight=torch.eye(32, 16), bias=None)
        self.lora.begin(step, 3)
        return self.lora.product(linear, torch.ones(3, 16), step)


ORDER = ["mark compute", "beside after compute", "_base in compute", "lora_shrink in beside", "lora_expand in beside",
         "mark beside", "compute after beside"]  # fmt: skip


def test_a_decode_steps_adapters_run_between_a_fork_and_a_join(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(monkeypatch)
    beside = rig.product(is_decode=True)
    assert rig.said == ORDER
    assert beside.delta is not None
    assert not beside.delta[::2].any(), "rows without adapter stay zero"
    rig.said.clear()
    after = rig.product(is_decode=False)
    assert rig.said == ["_base in compute", "lora_shrink in compute", "lora_expand in compute"]
    assert after.delta is None
    assert torch.allclose(beside.base + beside.delta, after.base, rtol=1e-6)
    assert torch.equal(beside.joined(), beside.base)


@pytest.mark.parametrize("wrong", ["lora_shrink", "lora_expand"])
def test_what_was_launched_is_joined_when_the_rest_cannot_be(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    rig = Rig(monkeypatch)
    rig.wrong = wrong
    with pytest.raises(RuntimeError, match="refuses"):
        rig.product(is_decode=True)
    assert rig.said[-2:] == ["mark beside", "compute after beside"]
