"""The peer `transformers`, and with adapters `transformers` + PEFT: `generate(adapter_names=[...])` on the same folder.

Greedy, the end token switched off, cache and attention as the library chooses. Steps are stamped by a stopping
criterion, which `generate` calls once after each token.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList

from infra.bench.child import Times, serve
from infra.bench.children import THREADS

NO_ADAPTER = "__base__"  # PEFT's own name for a row without one


class Stamps(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed here
    """Stamps each step and never stops."""

    def __init__(self) -> None:
        self.times = Times()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.step(len(input_ids))
        return torch.zeros(len(input_ids), dtype=torch.bool)


class TransformersChild:
    """The model, and with `adapters` the PEFT model around it."""

    def __init__(self, folder: Path, dtype: str, adapters: list[str]) -> None:
        torch.set_num_threads(THREADS)
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        for name in adapters:
            place = folder / "adapters" / name
            if isinstance(model, PeftModel):
                model.load_adapter(place, adapter_name=name, autocast_adapter_dtype=False)
            else:
                model = PeftModel.from_pretrained(model, place, adapter_name=name, autocast_adapter_dtype=False)
        self._model: Any = model.eval()
        self._peft = bool(adapters)

    def batch(self, prompts: list[list[int]], adapters: list[str | None], tokens: int) -> dict[str, Any]:
        """See `children.Child.batch`."""
        named = {"adapter_names": [name or NO_ADAPTER for name in adapters]} if self._peft else {}
        ids = torch.tensor(prompts)
        stamps = Stamps()
        with torch.inference_mode():
            found = self._model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                stopping_criteria=StoppingCriteriaList([stamps]),
                **named,
            )
        return stamps.times.answer(found[:, ids.shape[1] :].tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("dtype")
    parser.add_argument("adapters", nargs="*")
    options = parser.parse_args()
    serve({"batch": TransformersChild(options.folder, options.dtype, options.adapters).batch})
