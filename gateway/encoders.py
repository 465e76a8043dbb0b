"""The encoders of this deployment: embeddings and rerankers, listed beside the catalogue's bases, served by settings.

The built-in names are those that clients ask for; weights come from `[encoders."@cf/baai/..."] path = ...`.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from gateway.errors import UnknownModel
from gateway.names import MAX_NAME_CHARS
from gateway.settings import Encoder, SettingsError
from runtime.encoder.config import Pooling, Task, read_shape
from runtime.errors import ModelInvalid

_ID_SPACE: Final = uuid.UUID("8d3f9c52-6b3e-5f0a-9d0e-3f1b6f6a7c10")
_CREATED: Final = "2026-11-20 00:00:00.000"
MAX_TOKENS: Final = 8192
_BUILT_IN: Final[dict[str, tuple[Task, Pooling]]] = {
    "@cf/baai/bge-small-en-v1.5": ("embed", "mean"),
    "@cf/baai/bge-base-en-v1.5": ("embed", "mean"),
    "@cf/baai/bge-large-en-v1.5": ("embed", "mean"),
    "@cf/baai/bge-m3": ("embed", "cls"),
    "@cf/baai/bge-reranker-base": ("rank", "cls"),
}
_DESCRIPTIONS: Final[dict[Task, str]] = {
    "embed": "Turns texts into vectors of length 1.",
    "rank": "Says how well each of several texts answers a query, from 0 to 1.",
}


class EncoderModel(msgspec.Struct, frozen=True):
    """One encoder. `folder` None: listed, no weights. `size`: numbers of one vector; 0 without weights."""

    name: str
    id: str
    task: Task
    pooling: Pooling
    folder: Path | None
    max_tokens: int
    size: int
    description: str
    created_at: str = _CREATED

    @property
    def source(self) -> int:
        """As `CatalogModel.source`."""
        return 2 if self.name.startswith("@hf/") else 1

    @property
    def author(self) -> str:
        """As `CatalogModel.author`."""
        parts = self.name.split("/")
        return parts[-2] if len(parts) > 1 else ""


class EncoderCatalog:
    """Read-only after construction."""

    def __init__(self, configured: Mapping[str, Encoder]) -> None:
        """Raises SettingsError for a folder that holds no encoder, and for one whose task nobody says."""
        self._models = {name: _build(name, configured.get(name)) for name in [*_BUILT_IN, *configured]}

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def get(self, name: str) -> EncoderModel:
        """One that has weights. Raises UnknownModel."""
        model = self._models[name]
        if model.folder is None:
            raise UnknownModel(
                f"{name} is in the catalogue but this deployment has no weights for it; to serve it, set "
                f'[encoders."{name}"] path = "/folder/of/its/weights" in lorikeet.toml and restart',
                param="model",
            )
        return model

    def all(self) -> tuple[EncoderModel, ...]:
        """Every one, served or not."""
        return tuple(self._models.values())

    def served(self) -> tuple[EncoderModel, ...]:
        """Those that have weights."""
        return tuple(model for model in self._models.values() if model.folder is not None)


def _build(name: str, asked: Encoder | None) -> EncoderModel:
    task, pooling = _BUILT_IN.get(name, (None, None))
    folder, size, most = None, 0, 512
    if len(name) > MAX_NAME_CHARS or name.count("/") > 3:
        raise SettingsError(f'encoders."{name}": not a model name; use the form "@cf/author/model"')
    if asked is not None:
        task, pooling = asked.task or task, asked.pooling or pooling
        if task is None:
            raise SettingsError(f'encoders."{name}".task: say "embed" or "rank"; the name does not tell')
        folder = Path(asked.path).expanduser()
        try:
            shape = read_shape(folder)
        except ModelInvalid as error:
            raise SettingsError(f'encoders."{name}".path = {asked.path!r}: {error}') from error
        size, most = shape.hidden_size, min(shape.max_tokens, MAX_TOKENS)
    assert task is not None, "built-in names have one"
    return EncoderModel(
        name=name,
        id=str(uuid.uuid5(_ID_SPACE, name)),
        task=task,
        pooling=pooling or "mean",
        folder=folder,
        max_tokens=most,
        size=size,
        description=_DESCRIPTIONS[task],
    )
