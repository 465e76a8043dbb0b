"""Finetunes, versions and aliases as JSON. The fields up to `modified_at` are the contract's (3.6), the others ours."""

from collections.abc import Callable
from typing import Any

from gateway.finetune_records import Finetune, Pointer, Version
from gateway.wire.envelope import iso_time
from runtime.protocol import AdapterStatus

# Where a digest is now; None when the model's backend never saw it.
Residency = Callable[[str], AdapterStatus | None]


def finetune_json(finetune: Finetune) -> dict[str, Any]:
    """A row of a list."""
    current = finetune.current
    return {
        "id": finetune.id,
        "account_id": finetune.account_id,
        "name": finetune.name,
        "model": finetune.model,
        "description": finetune.description,
        "public": finetune.public,
        "created_at": iso_time(finetune.created_at),
        "modified_at": iso_time(finetune.modified_at),
        "status": finetune.status,
        "reasons": finetune.reasons,
        "version": current.number if current else None,
    }


def finetune_detail(finetune: Finetune, in_use: Callable[[int], int], residency: Residency | None) -> dict[str, Any]:
    """Everything; what describes weights is that of the current version, or of the one in the making."""
    shown = _weights(finetune.shown, residency)
    used = [version.last_used_at for version in finetune.versions if version.last_used_at is not None]
    return {
        **finetune_json(finetune),
        **shown,
        "pinned": finetune.pinned,
        "last_used_at": iso_time(max(used)) if used else None,
        "requests": sum(version.requests for version in finetune.versions),
        "in_use": sum(in_use(version.number) for version in finetune.versions),
        "aliases": {name: pointer_json(pointer) for name, pointer in finetune.aliases.items()},
        "versions": [version_json(finetune, version, in_use, residency) for version in reversed(finetune.versions)],
    }


def version_json(
    finetune: Finetune, version: Version, in_use: Callable[[int], int], residency: Residency | None
) -> dict[str, Any]:
    """One version with the aliases that may lead to it."""
    return {
        "version": version.number,
        "status": version.status,
        "reasons": version.reasons,
        "activate": version.activate,
        "created_at": iso_time(version.created_at),
        "modified_at": iso_time(version.modified_at),
        **_weights(version, residency),
        "last_used_at": None if version.last_used_at is None else iso_time(version.last_used_at),
        "requests": version.requests,
        "in_use": in_use(version.number),
        "aliases": sorted(name for name, each in finetune.aliases.items() if version.number in each.versions),
    }


def pointer_json(pointer: Pointer) -> dict[str, Any]:
    """What an alias means."""
    canary = None
    if pointer.canary is not None:
        canary = {"version": pointer.canary, "percent": pointer.canary_percent}
    return {"version": pointer.version, "canary": canary}


def _weights(version: Version, residency: Residency | None) -> dict[str, Any]:
    return {
        "rank": version.rank,
        "modules": version.modules,
        "size_bytes": version.size_bytes,
        "digest": version.digest,
        "files": [{"file_name": f.file_name, "size_bytes": f.size_bytes, "sha256": f.sha256} for f in version.files],
        "missing": version.missing,
        "residency": _residency(version, residency),
    }


def _residency(version: Version, residency: Residency | None) -> dict[str, Any] | None:
    """Where the weights are now and how they last got there; before any request they are in the object store."""
    if version.digest is None or residency is None:
        return None
    status = residency(version.digest)
    if status is None:
        return {"tier": "object", "path": []}
    path = [{"tier": v.tier, "ms": round(v.seconds * 1000, 3), "bytes": v.size_bytes} for v in status.visits]
    found: dict[str, Any] = {"tier": status.resident or "object", "path": path}
    if status.failure is not None:
        found["failure"] = status.failure.message
    return found
