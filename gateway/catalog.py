"""The catalogue: which base models this deployment knows, which of them it serves, and what each one is.

Shape: a `CatalogModel` per canonical name, built once at start from the built-in entries and the operator's folders.
A model without a folder is listed, but asking for it says which setting would serve it. Reading a folder here means
its `config.json` only; weights are the runtime's business.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.errors import InvalidModelId, UnknownModel
from gateway.listed import ListedModel, check_configured, id_of, is_model_name, without_weights
from gateway.names import printable
from gateway.settings import DEMO_MODEL, SettingsError
from storage.geometry import Geometry

ALIASES: Final[dict[str, str]] = {
    "@cf/mistralai/mistral-7b-instruct-v0.2-lora": "@cf/mistral/mistral-7b-instruct-v0.2-lora",
}
# Families whose linear modules are the seven that an adapter may change.
LORA_FAMILIES: Final[frozenset[str]] = frozenset(
    {"llama", "mistral", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"}
)
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


class CatalogModel(ListedModel, frozen=True, kw_only=True):
    """One base model. `geometry` is None while no weights are configured for it."""

    family: str | None
    context_window: int
    supports_lora: bool
    geometry: Geometry | None


class Catalog:
    """Read-only after construction. Names are exact; the known aliases lead to their canonical name."""

    def __init__(self, models: Mapping[str, Path | None]) -> None:
        """`models` maps names to folders; None keeps a built-in model listed but not served.

        The demo base is served from the package unless `models` says otherwise. Raises SettingsError that names the
        model whose folder cannot be used.
        """
        folders: dict[str, Path | None] = {DEMO_MODEL: _DEMO_FOLDER if _DEMO_FOLDER.is_dir() else None}
        for name, folder in models.items():
            check_configured(name, "models")
            folders[ALIASES.get(name, name)] = folder
        names = [*_BUILT_IN, *(name for name in folders if name not in _BUILT_IN)]
        self._models = {name: _build(name, folders.get(name)) for name in names}

    def canonical(self, name: str) -> str:
        """The name that the catalogue uses for `name`. Raises UnknownModel when it has none, InvalidModelId for a text
        that no model can be called.
        """
        canonical = ALIASES.get(name, name)
        if canonical not in self._models:
            if not is_model_name(name):
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
            raise without_weights(model.name, "models")
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
        id=id_of(name),
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
