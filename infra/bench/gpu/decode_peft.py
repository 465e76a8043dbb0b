"""The peer of the decode benchmark: transformers with PEFT's mixed batches, on the same shapes and the same device.

`generate(adapter_names=[...])`, greedy, attention and cache as the library chooses; every step is stamped by a stopping
criterion after the device has finished it. Adapters of one rank are made by PEFT itself, on the device, with random B.
"""

import itertools
import statistics
import time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from infra.bench.gpu.child import Line, arguments
from infra.bench.gpu.decode_cases import Case, cases
from infra.bench.gpu.device import about, finish
from infra.bench.gpu.settings import Setting, setting_of
from storage.geometry import MODULES

NO_ADAPTER = "__base__"  # PEFT's own name for a row without one


class _Stamps(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed here
    """The time of each step; never stops."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.times = device, list[float]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        finish(self._device)
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Peft:
    """A model; adapters of the rank asked for last are on it."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self._setting, self._device = setting, device
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**_fields(setting)))
        self._base: Any = model.to(setting.torch_dtype).eval()
        self._base.generation_config.eos_token_id = None
        self._base.generation_config.pad_token_id = 0
        self._peft: Any = None
        self._there = (0, 0)

    def measured(self, case: Case) -> Line:
        """Milliseconds of a step of this case."""
        names = [f"a{index}" for index, rows in enumerate(case.lengths) for _ in range(rows)]
        model, more = self._base, {}
        if names:
            model, more = self._with_adapters(case.rank, len(case.lengths)), {"adapter_names": names}
        elif self._peft is not None:
            model, more = self._peft, {"adapter_names": [NO_ADAPTER] * case.batch}
        # The first two steps warm up, the prefill comes before them.
        times = self._generate(model, case.batch, self._setting.context, self._setting.steps + 3, more)[1]
        gaps = [after - before for before, after in itertools.pairwise(times[2:])]
        return {"ms": 1e3 * statistics.median(gaps)}

    def first_token(self, prompt: int, adapter: bool) -> Line:
        """Milliseconds to the first token of one prompt."""
        model, more = self._base, {}
        if adapter:
            model, more = self._with_adapters(self._setting.ranks[0], 1), {"adapter_names": ["a0"]}
        found = [self._generate(model, 1, prompt, 1, more) for _ in range(4)]
        return {"ms": 1e3 * statistics.median(times[0] - began for began, times in found[1:])}

    def _generate(
        self, model: Any, batch: int, prompt: int, tokens: int, more: dict[str, Any]
    ) -> tuple[float, list[float]]:
        ids = torch.randint(3, int(self._setting.config["vocab_size"]), (batch, prompt), device=self._device)
        stamps = _Stamps(self._device)
        finish(self._device)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                stopping_criteria=StoppingCriteriaList([stamps]),
                **more,
            )
        return began, stamps.times

    def _with_adapters(self, rank: int, count: int) -> Any:
        there = self._there[0] if self._there[1] == rank else 0
        if self._peft is not None and there == 0:
            self._base, self._peft = self._peft.unload(), None
        config = LoraConfig(
            r=rank, lora_alpha=rank, target_modules=list(MODULES), init_lora_weights=False, task_type="CAUSAL_LM"
        )
        with torch.device(self._device):
            for index in range(there, count):
                if self._peft is None:
                    self._peft = get_peft_model(self._base, config, f"a{index}", autocast_adapter_dtype=False)
                else:
                    self._peft.add_adapter(f"a{index}", config)
        self._peft = self._peft.to(self._setting.torch_dtype).eval()
        self._there = max(count, there), rank
        return self._peft


def _fields(setting: Setting) -> dict[str, Any]:
    return {name: value for name, value in setting.config.items() if name not in ("architectures", "model_type")}


def main() -> None:
    """Writes a line per case: what is nearest to the targets first."""
    out, device_name = arguments()
    device = torch.device(device_name)
    setting = setting_of(device.type)
    out.write(about(device))
    peer = Peft(setting, device)
    for prompt in setting.prompts:
        out.measured(f"ttft.{prompt}", lambda prompt=prompt: peer.first_token(prompt, False))  # type: ignore[misc]
    for case in sorted(cases(setting), key=lambda case: (case.rank not in (0, setting.ranks[0]), case.kind != "d8")):
        out.measured(str(case), lambda case=case: peer.measured(case))  # type: ignore[misc]
    for prompt in setting.prompts:
        name = f"ttft.{prompt}.adapter"
        out.measured(name, lambda prompt=prompt: peer.first_token(prompt, True))  # type: ignore[misc]


if __name__ == "__main__":
    main()
