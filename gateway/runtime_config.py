"""Settings of the deployment -> what one runtime process is told."""

from pathlib import Path

from gateway.catalog import ALIASES
from gateway.data_dir import DataDir, object_folder
from gateway.demo import BASE_FOLDER
from gateway.encoders import EncoderCatalog
from gateway.memory_budget import RuntimeMemory
from gateway.runtime_address import RuntimeAddress, remote_runtimes
from gateway.settings import DEMO_MODEL, Settings
from runtime.config import RuntimeConfig
from runtime.encoder.config import EncoderConfig


def model_folders(settings: Settings) -> dict[str, Path]:
    """The bases to serve, by catalogue name: the configured ones, and the demo base unless it is switched off."""
    folders = {ALIASES.get(name, name): Path(model.path).expanduser() for name, model in settings.models.items()}
    if settings.demo_model:
        folders.setdefault(DEMO_MODEL, BASE_FOLDER)
    return folders


def local_folders(settings: Settings) -> dict[str, Path]:
    """The bases whose runtimes are started here."""
    elsewhere = remote_runtimes(settings)
    return {model: folder for model, folder in model_folders(settings).items() if model not in elsewhere}


def catalog_folders(settings: Settings) -> dict[str, Path | None]:
    """What the catalogue is made from: the bases to serve, and None for a demo base that is switched off."""
    return {DEMO_MODEL: None, **model_folders(settings)}


def encoder_config(settings: Settings, model: str, socket_path: Path, token: str) -> EncoderConfig:
    """Raises SettingsError when the folder holds no encoder."""
    found = EncoderCatalog(settings.encoders).get(model)
    return EncoderConfig(
        model=model,
        model_folder=str(found.folder),
        task=found.task,
        device=settings.runtime.device,
        threads=settings.runtime.threads,
        socket_path=str(socket_path),
        token=token,
    )


def runtime_config(
    settings: Settings, model: str, folder: Path, memory: RuntimeMemory, address: RuntimeAddress, token: str
) -> RuntimeConfig:
    """Each runtime has a disk tier of its own, named by the model's place in the sorted list of models, unless one
    folder for all is set.
    """
    data_dir = DataDir(Path(settings.data_dir))
    index = sorted(model_folders(settings)).index(model)
    runtime, storage, tiers = settings.runtime, settings.storage, settings.tiers
    tier_dir = Path(tiers.path).expanduser().resolve() if tiers.path else data_dir.tiers(index)
    return RuntimeConfig(
        model=model,
        model_folder=str(folder),
        device=runtime.device,
        dtype=runtime.dtype,
        threads=runtime.threads,
        kv_bytes=memory.kv_bytes,
        card_memory=memory.card,
        block_tokens=runtime.block_tokens,
        adapter_rows=runtime.adapter_rows,
        max_running=runtime.max_running,
        max_waiting=runtime.max_waiting,
        step_tokens=runtime.step_tokens,
        prefix_cache=runtime.prefix_cache,
        socket_path=address.socket_path,
        host=address.host,
        port=address.port,
        token=token,
        drain_s=settings.server.drain_s,
        objects=storage.objects,
        objects_root=str(object_folder(settings)),
        bucket=storage.bucket,
        endpoint=storage.endpoint,
        region=storage.region,
        access_key_id=storage.access_key_id,
        secret_access_key=storage.secret_access_key,
        tier_dir=str(tier_dir),
        tier_memory_bytes=memory.tier_bytes,
        tier_disk_bytes=tiers.disk_bytes,
        tier_memory_policy=tiers.memory_policy,
        tier_disk_policy=tiers.disk_policy,
        tier_giants_share=tiers.giants_share,
        tier_negative_ttl_s=tiers.negative_ttl_s,
        tier_refill=tiers.refill,
        otlp_endpoint=settings.telemetry.otlp_endpoint,
        sample_ratio=settings.telemetry.sample_ratio,
    )
