"""What bases (`catalog.py`) and encoders (`encoders.py`) have in common: both are listed by a public name, with an id
that is the same everywhere, whether this deployment has their weights or not.
"""

import re
import uuid
from pathlib import Path
from typing import Final

import msgspec

from gateway.errors import UnknownModel
from gateway.names import MAX_NAME_CHARS
from gateway.settings import SettingsError

_NAME: Final = re.compile(r"(?:@[a-z]+/)?[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*){0,3}")
_ID_SPACE: Final = uuid.UUID("8d3f9c52-6b3e-5f0a-9d0e-3f1b6f6a7c10")


class ListedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the lists. `folder` None: no weights are configured for it."""

    name: str
    id: str
    description: str
    created_at: str
    folder: Path | None

    @property
    def source(self) -> int:
        """The contract's number of the name's first part: 1 for `@cf` and local names, 2 for `@hf`."""
        return 2 if self.name.startswith("@hf/") else 1

    @property
    def author(self) -> str:
        """The part of the name before the model's own."""
        parts = self.name.split("/")
        return parts[-2] if len(parts) > 1 else ""


def is_model_name(name: str) -> bool:
    """Whether a model can be called so."""
    return len(name) <= MAX_NAME_CHARS and _NAME.fullmatch(name) is not None


def check_configured(name: str, section: str) -> None:
    """Raises SettingsError for a name in the settings that no model can have."""
    if not is_model_name(name):
        raise SettingsError(f'{section}."{name}": not a model name; use the form "@cf/author/model"')


def id_of(name: str) -> str:
    """The same in every deployment and after every restart."""
    return str(uuid.uuid5(_ID_SPACE, name))


def without_weights(name: str, section: str) -> UnknownModel:
    """What says which setting would serve a model that is only listed."""
    return UnknownModel(
        f"{name} is in the catalogue but this deployment has no weights for it; to serve it, set "
        f'[{section}."{name}"] path = "/folder/of/its/weights" in lorikeet.toml and restart',
        param="model",
    )
