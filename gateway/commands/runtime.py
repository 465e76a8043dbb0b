"""`lorikeet runtime`: one base's runtime alone, for gateways of this machine or of others.

The command becomes the runtime process: signals, standard output and the exit code are the runtime's own. The
configuration, which holds secrets, goes over a pipe and never stands in argv or in a file.
"""

import os
import stat
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gateway.commands.options import CommandFailed, Config, DataDir, settings_of
from gateway.machine_memory import machine_bytes
from gateway.memory_budget import MemoryExceeded, plan_memory
from gateway.runtime_address import RuntimeAddress, check_token
from gateway.runtime_config import model_folders, runtime_config
from gateway.settings import DEMO_MODEL, Settings, SettingsError, inherited_environ
from runtime.errors import ConfigInvalid, ModelInvalid


def runtime(
    model: Annotated[str, typer.Argument(help="Catalogue name of a configured base.")] = DEMO_MODEL,
    listen: Annotated[
        str | None,
        typer.Option("--listen", help="unix:/path.sock or tcp://host:port; default: the model's address."),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the secret; default: the settings' token.")
    ] = None,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Run one runtime alone. Gateways find it by the `address` of the same model; stop it with SIGTERM."""
    settings = settings_of(config, data_dir)
    folders = model_folders(settings)
    if model not in folders:
        raise CommandFailed(f"{model} is not configured; this deployment has {', '.join(sorted(folders))}", 2)
    named = settings.models.get(model)
    text = listen or (named.address if named else "")
    if not text:
        raise CommandFailed(
            f'where to listen is missing: set [models."{model}"] address, or give --listen unix:/path.sock', 78
        )
    token = _read(token_file) if token_file else (named.token if named else "") or settings.runtime.token
    try:
        address = RuntimeAddress.parse(text)
        check_token(address, token)
        memory = plan_memory(settings, {model: folders[model]}, machine_bytes(), with_gateway=False)[model]
        told = runtime_config(settings, model, folders[model], memory, address, token).check()
    except (ValueError, SettingsError, MemoryExceeded, ModelInvalid, ConfigInvalid) as error:
        raise CommandFailed(str(error), 78) from error
    _make_data_dir(settings)
    print(f"runtime of {model} on {address}; memory: {memory}", file=sys.stderr, flush=True)
    _become(told.to_json())


def _read(path: Path) -> str:
    """The secret of a file that the world may not read. Raises CommandFailed."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o007:
            raise CommandFailed(f"{path}: anybody may read this secret; change it, and its mode to 0600", 78)
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"{path}: cannot be read ({error})", 78) from error


def _make_data_dir(settings: Settings) -> None:
    try:
        Path(settings.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"data_dir = {settings.data_dir!r}: cannot be used ({error.strerror})", 78) from error


def _become(config: bytes) -> NoReturn:
    """This process goes on as the runtime, which finds its configuration in an inherited pipe (a few kB: they fit)."""
    reader, writer = os.pipe()
    os.write(writer, config)
    os.close(writer)
    os.set_inheritable(reader, True)
    argv = [sys.executable, "-m", "runtime", "--config", f"/dev/fd/{reader}"]
    os.execve(sys.executable, argv, inherited_environ())  # noqa: S606 - no shell is what is wanted
