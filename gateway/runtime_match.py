"""Is the runtime that answers the one that this gateway means? Another model's token ids would give wrong answers.

Compared: the catalogue name, and the sizes in the gateway's own copy of the base's `config.json`.
"""

import json

from gateway.catalog import CatalogModel
from runtime.protocol import ModelInfo


class RuntimeMatch:
    """Made once per model; called at every welcome."""

    def __init__(self, model: CatalogModel) -> None:
        """Reads the model's `config.json`, which the catalogue has found to be one."""
        assert model.folder is not None, "Catalog.get gives models with a folder"
        self._name, self._geometry = model.name, model.geometry
        self._vocab_size = json.loads((model.folder / "config.json").read_bytes()).get("vocab_size")

    def __call__(self, info: ModelInfo) -> str | None:
        """What is wrong with the runtime, in words for the operator; None when it is the right one."""
        if info.name != self._name:
            return f"it serves {info.name} and not {self._name}"
        if self._vocab_size is not None and info.vocab_size != self._vocab_size:
            return f"its {info.name} has {info.vocab_size} token ids and the folder here {self._vocab_size}"
        if info.geometry is not None and info.geometry != self._geometry:
            return f"its {info.name} has other sizes ({info.geometry}) than the folder here ({self._geometry})"
        return None
