"""The parts that a request may need, opened together by `app.py` and closed in reverse. Handlers get this record.

Back-references stay under TYPE_CHECKING: this file is known by every endpoint and knows nobody at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from msgspec import Raw

    from gateway.accounts import Accounts
    from gateway.backends.base import Backend
    from gateway.backends.encoder import EncoderBackend
    from gateway.batches.desk import BatchDesk
    from gateway.body_budget import BodyBudget
    from gateway.cache_care import CacheCare
    from gateway.catalog import Catalog
    from gateway.encoders import EncoderCatalog
    from gateway.finetunes import Finetunes
    from gateway.logs.log_store import LogStore
    from gateway.pipeline import Pipeline
    from gateway.settings import Settings
    from gateway.telemetry import Telemetry
    from storage.database import Database
    from storage.objects.base import ObjectStore


@dataclass(frozen=True)
class Services:
    """Everything open. `backends` maps a catalogue name to what answers for it; `hang_up` ends all running answers
    with a typed error, at the end of a drain. `description`: the OpenAPI document.
    """

    settings: Settings
    database: Database
    objects: ObjectStore
    accounts: Accounts
    catalog: Catalog
    finetunes: Finetunes
    caches: CacheCare
    logs: LogStore
    backends: Mapping[str, Backend]
    pipeline: Pipeline
    telemetry: Telemetry
    bodies: BodyBudget
    hang_up: Callable[[], None]
    description: Raw
    batches: BatchDesk
    encoders: EncoderCatalog
    encoder_backends: Mapping[str, EncoderBackend]
