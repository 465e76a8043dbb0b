"""The encoders of this deployment: embeddings and rerankers, listed beside the catalogue's bases, served by settings.

The built-in names are those that clients ask for; weights come from `[encoders."@cf/baai/..."] path = ...`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from gateway.listed import ListedModel, check_configured, id_of, without_weights
from gateway.settings import Encoder, SettingsError
from runtime.encoder.config import Pooling, Task, read_shape
from runtime.errors import ModelInvalid

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


class EncoderModel(ListedModel, frozen=True, kw_only=True):
    """One encoder. `size`: numbers of one vector; 0 without weights."""

    task: Task
    pooling: Pooling
    max_tokens: int
    size: int


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
            raise without_weights(name, "encoders")
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
    check_configured(name, "encoders")
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
        id=id_of(name),
        created_at=_CREATED,
        task=task,
        pooling=pooling or "mean",
        folder=folder,
        max_tokens=most,
        size=size,
        description=_DESCRIPTIONS[task],
    )
