"""`lorikeet adapters pull | merge`: an adapter's files from the deployment, and base + adapter as one folder."""

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.adapters import FILES, Finetune, Folder, Model, path_of
from gateway.commands.api import AccountId, Public, Token, Url, open_api
from gateway.commands.options import AsJson, CommandFailed, Config, DataDir, print_json, settings_of
from gateway.errors import LorikeetError
from gateway.settings import DEMO_MODEL, SettingsError

Out = Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")]


def pull(
    finetune: Finetune,
    out: Out,
    version: Annotated[int | None, typer.Option(help="Default: the current one.")] = None,
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Bring both files of an adapter as a PEFT folder, checked against their digests."""
    if out.exists():
        raise CommandFailed(f"{out} is there already; name a folder that is not")
    path = path_of(finetune) + ("" if version is None else f"/versions/{version}")
    with open_api(config, data_dir, url, account, token, public) as api:
        details = api.result("GET", path)
        digests = {file["file_name"]: file["sha256"] for file in details["files"]}
        if missing := [name for name in FILES if name not in digests]:
            raise CommandFailed(f"{finetune} has no {' and no '.join(missing)}")
        # The version that was looked at, even if another becomes current meanwhile.
        path = f"{path_of(details.get('id', finetune))}/versions/{details['version']}"
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
                for name in FILES:
                    with (Path(scratch) / name).open("wb") as file:
                        api.copy(f"{path}/finetune-assets/{name}", {}, file)
                    with (Path(scratch) / name).open("rb") as written:
                        found = hashlib.file_digest(written, "sha256").hexdigest()
                    if found != digests[name]:
                        raise CommandFailed(f"{name} came with digest {found} instead of {digests[name]}; try again")
                out.mkdir()
                for name in FILES:
                    os.replace(Path(scratch) / name, out / name)
        except OSError as error:
            raise CommandFailed(f"{error.filename or out}: {error.strerror}") from error
    if as_json:
        print_json({"version": details["version"], "files": digests})
    else:
        print(f"version {details['version']} of {finetune} is in {out}")


def merge(
    folder: Folder,
    out: Out,
    model: Model = DEMO_MODEL,
    base: Annotated[
        Path | None, typer.Option("--base", help="Folder of the base; default: the one of --model in the settings.")
    ] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write base + adapter as a plain Hugging Face folder: scaling * B @ A added to every adapted weight."""
    from gateway.ingest.adapter import AdapterRefused
    from gateway.ingest.merge import MergeFailed, merge_folders

    chosen = base or _folder_of(model, config)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        modules = merge_folders(chosen, folder, out)
    except AdapterRefused as refused:
        raise CommandFailed("the adapter does not fit the base:\n  - " + "\n  - ".join(refused.reasons)) from refused
    except MergeFailed as failure:
        raise CommandFailed(str(failure)) from failure
    except OSError as error:
        raise CommandFailed(f"{error.filename or out}: {error.strerror}") from error
    if as_json:
        print_json({"folder": str(out), "modules": modules})
    else:
        print(f"{out} holds {chosen} with {folder} merged into {', '.join(modules)}")


def _folder_of(model: str, config: Path | None) -> Path:
    from gateway.catalog import Catalog
    from gateway.runtime_config import catalog_folders

    try:
        found = Catalog(catalog_folders(settings_of(config))).get(model)
    except (LorikeetError, SettingsError) as error:
        raise CommandFailed(str(error), 2) from error
    assert found.folder is not None  # a model that has weights has a folder
    return found.folder
