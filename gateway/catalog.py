"""The catalogue: which base models this deployment knows, which of them it serves, and what each one is.

Shape: a `CatalogModel` per canonical name, built once at start from the built-in entries and the operator's folders.
A model without a folder is listed, but asking for it says which setting would serve it. Reading a folder here means
its `config.json` only; weights are the runtime's business.
"""

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.errors import InvalidModelId, UnknownModel
from gateway.names import MAX_NAME_CHARS, printable
from gateway.settings import DEMO_MODEL, SettingsError
from storage.geometry import Geometry

ALIASES: Final[dict[str, str]] = {
    "@cf/mistralai/mistral-7b-instruct-v0.2-lora": "@cf/mistral/mistral-7b-instruct-v0.2-lora",
}
# Families whose linear modules are the seven that an adapter may change.
LORA_FAMILIES: Final[frozenset[str]] = frozenset(
    {"llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"}
)
_NAME = re.compile(r"(?:@[a-z]+/)?[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}")
_ID_SPACE = uuid.UUID("8d3f9c52-6b3e-5f0a-9d0e-3f1b6f6a7c10")
_DEMO_FOLDER = Path(__file__).parent / "demo" / "data" / "base"


class _Entry(msgspec.Struct, frozen=True):
    family: str | None
    context_window: int | None
    created_at: str
    description: str


_BUILT_IN: Final[dict[str, _Entry]] = {
    DEMO_MODEL: _Entry(
        "llama", 1024, "2026-11-20 00:00:00.000", "The small model that comes with Lorikeet: adapters without a GPU."
    ),
    "@cf/meta-llama/llama-2-7b-chat-hf-lora": _Entry(
        "llama", 8192, "2024-04-02 00:00:00.000", "Llama 2 7B chat in full precision, for use with your own adapters."
    ),
    "@cf/mistral/mistral-7b-instruct-v0.2-lora": _Entry(
        "mistral", 15000, "2024-04-01 00:00:00.000", "Mistral 7B Instruct v0.2, for use with your own adapters."
    ),
    "@cf/google/gemma-2b-it-lora": _Entry(
        "gemma", 8192, "2024-04-02 00:00:00.000", "Gemma 2B instruction-tuned, for use with your own adapters."
    ),
    "@cf/google/gemma-7b-it-lora": _Entry(
        "gemma", 3500, "2024-04-02 00:00:00.000", "Gemma 7B instruction-tuned, for use with your own adapters."
    ),
}  # fmt: skip


class CatalogModel(msgspec.Struct, frozen=True):
    """One base model. `folder` and `geometry` are None while no weights are configured for it."""

    name: str
    id: str
    description: str
    created_at: str
    family: str | None
    context_window: int
    supports_lora: bool
    folder: Path | None
    geometry: Geometry | None

    @property
    def source(self) -> int:
        """The contract's number of the name's first part: 1 for `@cf` and local names, 2 for `@hf`."""
        return 2 if self.name.startswith("@hf/") else 1

    @property
    def author(self) -> str:
        """The part of the name before the model's own."""
        parts = self.name.split("/")
        return parts[-2] if len(parts) > 1 else ""


class Catalog:
    """Read-only after construction. Names are exact; the known aliases lead to their canonical name."""

    def __init__(self, models: Mapping[str, Path | None]) -> None:
        """`models` maps names to folders; None keeps a built-in model listed but not served.

        The demo base is served from the package unless `models` says otherwise. Raises SettingsError that names the
        model whose folder cannot be used.
        """
        folders: dict[str, Path | None] = {DEMO_MODEL: _DEMO_FOLDER if _DEMO_FOLDER.is_dir() else None}
        for name, folder in models.items():
            if not _NAME.fullmatch(name) or len(name) > MAX_NAME_CHARS:
                raise SettingsError(f'models."{name}": not a model name; use the form "@cf/author/model"')
            folders[ALIASES.get(name, name)] = folder
        names = [*_BUILT_IN, *(name for name in folders if name not in _BUILT_IN)]
        self._models = {name: _build(name, folders.get(name)) for name in names}

    def canonical(self, name: str) -> str:
        """The name that the catalogue uses for `name`. Raises UnknownModel when it has none, InvalidModelId for a text
        that no model can be called.
        """
        canonical = ALIASES.get(name, name)
        if canonical not in self._models:
            if len(name) > MAX_NAME_CHARS or not _NAME.fullmatch(name):
                raise InvalidModelId(
                    f"Invalid model id {printable(name)}; a model is called like @cf/author/model", param="model"
                )
            raise UnknownModel(
                f"No such model {printable(name)} or task; GET /ai/models/search lists the models of this deployment",
                param="model",
            )
        return canonical

    def get(self, name: str) -> CatalogModel:
        """A model that has weights. Raises InvalidModelId; UnknownModel with a sentence that says what to do."""
        model = self._models[self.canonical(name)]
        if model.folder is None:
            raise UnknownModel(
                f"{model.name} is in the catalogue but this deployment has no weights for it; to serve it, set "
                f'[models."{model.name}"] path = "/folder/of/its/weights" in lorikeet.toml and restart',
                param="model",
            )
        return model

    def all(self) -> tuple[CatalogModel, ...]:
        """Every model of the catalogue, served or not, the built-in ones first."""
        return tuple(self._models.values())

    def served(self) -> tuple[CatalogModel, ...]:
        """The models that have weights."""
        return tuple(model for model in self._models.values() if model.folder is not None)


def _build(name: str, folder: Path | None) -> CatalogModel:
    entry = _BUILT_IN.get(name) or _Entry(None, None, "2026-11-20 00:00:00.000", "Configured by the operator.")
    geometry, window, family = None, entry.context_window or 0, entry.family
    if folder is not None:
        try:
            geometry = Geometry.from_folder(folder)
        except ValueError as error:
            raise SettingsError(f'models."{name}".path = {str(folder)!r}: {error}') from error
        if family is not None and geometry.model_type != family:
            raise SettingsError(
                f'models."{name}".path = {str(folder)!r}: holds a {geometry.model_type} model; it must be {family}'
            )
        family = geometry.model_type
        window = min(filter(None, (entry.context_window, _max_positions(folder))), default=0)
    return CatalogModel(
        name=name,
        id=str(uuid.uuid5(_ID_SPACE, name)),
        description=entry.description,
        created_at=entry.created_at,
        family=family,
        context_window=window or 2048,
        supports_lora=family in LORA_FAMILIES,
        folder=folder,
        geometry=geometry,
    )


def _max_positions(folder: Path) -> int | None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    positions = config.get("max_position_embeddings")
    return positions if isinstance(positions, int) and positions > 0 else None
