"""`lorikeet adapters`: check a PEFT folder offline, upload it, list, show and remove what is there.

Versions and aliases are in `adapter_versions.py`, what moves whole files in `adapter_files.py`.
`--public` works on the operator's public adapters, through the data folder's admin socket instead of a token.
"""

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from gateway.commands.api import AccountId, Api, Public, Token, Url, open_api
from gateway.commands.options import (
    AsJson,
    CommandFailed,
    Config,
    DataDir,
    print_json,
    print_rows,
    settings_of,
)
from gateway.errors import LorikeetError
from gateway.settings import DEMO_MODEL, SettingsError, adapter_limits

FILES = ("adapter_config.json", "adapter_model.safetensors")

app = typer.Typer(help="LoRA adapters (fine-tunes) of an account.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="PEFT folder with adapter_config.json and adapter_model.safetensors.")]
Model = Annotated[str, typer.Option("--model", help="Base model, by its catalogue name.")]
Finetune = Annotated[str, typer.Argument(help="Name or id.")]


@app.command()
def inspect(folder: Folder, model: Model = DEMO_MODEL, config: Config = None, as_json: AsJson = False) -> None:
    """Say offline whether an upload would be accepted, and if not, every reason. Exit code 1 when not."""
    from gateway.catalog import Catalog
    from gateway.ingest.inspection import inspect_folder
    from gateway.runtime_config import catalog_folders

    settings = settings_of(config)
    try:
        found = Catalog(catalog_folders(settings)).get(model)
    except (LorikeetError, SettingsError) as error:
        raise CommandFailed(str(error), 2) from error
    assert found.geometry is not None  # a model that has weights has a geometry
    inspection = inspect_folder(folder, found.geometry, adapter_limits(settings))
    if as_json:
        print_json(msgspec.to_builtins(inspection))
    elif inspection.ok:
        print(
            f"accepted: rank {inspection.rank}, {', '.join(inspection.modules)}, {inspection.dtype}, "
            f"{inspection.size_bytes} bytes when packed"
        )
    else:
        print("refused:")
        for reason in inspection.reasons:
            print(f"  - {reason}")
    if not inspection.ok:
        raise typer.Exit(1)


@app.command()
def add(
    folder: Folder,
    name: Annotated[str, typer.Option("--name", help="Name in the account; callers send it as `lora`.")],
    model: Model = DEMO_MODEL,
    description: Annotated[str, typer.Option(help="Free text.")] = "",
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Create a fine-tune and upload both files. A refused upload leaves nothing behind."""
    check_files(folder)
    with open_api(config, data_dir, url, account, token, public) as api:
        body = {"model": model, "name": name, "description": description}
        finetune_id = api.result("POST", "/ai/finetunes", json=body)["id"]
        try:
            for file_name in FILES:
                send_file(api, f"{path_of(finetune_id)}/finetune-assets", folder / file_name)
        except CommandFailed:
            api.call("DELETE", path_of(finetune_id))
            raise
        details = api.result("GET", path_of(finetune_id))
    if as_json:
        print_json(details)
    else:
        print(f"{name} is {details['status']}: rank {details['rank']}, id {finetune_id}")


@app.command("list")
def list_adapters(
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """List the account's fine-tunes."""
    with open_api(config, data_dir, url, account, token, public) as api:
        rows = api.result("GET", "/ai/finetunes")
    if as_json:
        print_json(rows)
        return
    columns = ("id", "name", "model", "status", "version", "created_at")
    print_rows("fine-tunes", columns, [[str(row.get(column, "")) for column in columns] for row in rows])


@app.command()
def show(
    finetune: Finetune,
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Show one: its state, its versions, what its aliases mean, when it was used, where its weights are."""
    with open_api(config, data_dir, url, account, token, public) as api:
        details = api.result("GET", path_of(finetune))
    if as_json:
        print_json(details)
        return
    print(f"{details['name']} ({details['id']}) for {details['model']}: {details['status']}")
    for reason in details["reasons"]:
        print(f"  refused: {reason}")
    print(
        f"{details['requests']} requests, last used {details['last_used_at'] or 'never'}, {details['in_use']} under way"
    )
    for alias, pointer in details["aliases"].items():
        print(f"  {alias}: {described(pointer)}")
    rows = [
        [str(v["version"]), v["status"], str(v["rank"] or ""), str(v["size_bytes"] or ""), str(v["requests"]),
         v["last_used_at"] or "", (v["residency"] or {}).get("tier") or "", v["digest"] or ""]
        for v in details["versions"]
    ]  # fmt: skip
    print_rows("versions", ("version", "status", "rank", "bytes", "requests", "last used", "tier", "digest"), rows)


@app.command()
def remove(
    finetune: Finetune,
    version: Annotated[int | None, typer.Option(help="Only this version, to which no alias leads.")] = None,
    refuse_if_in_use: Annotated[
        bool, typer.Option("--refuse-if-in-use", help="Fail while requests are answered with it, instead of draining.")
    ] = False,
    public: Public = False,
    config: Config = None,
    data_dir: DataDir = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
) -> None:
    """Delete a fine-tune: its files, its packed weights, its place in every tier."""
    path = path_of(finetune) + ("" if version is None else f"/versions/{version}")
    params = {"when_in_use": "refuse" if refuse_if_in_use else "drain"}
    with open_api(config, data_dir, url, account, token, public) as api:
        done = api.result("DELETE", path, params=params)
    what = finetune if version is None else f"version {version} of {finetune}"
    under_way = f"; {done['in_use']} requests under way still end with it" if done["in_use"] else ""
    print(f"{what} is removed{under_way}")


def path_of(finetune: str) -> str:
    """The finetune's path, whatever its name has in it."""
    return f"/ai/finetunes/{quote(finetune, safe='')}"


def check_files(folder: Path) -> None:
    """Raises CommandFailed when one of the two files is missing."""
    for file_name in FILES:
        if not (folder / file_name).is_file():
            raise CommandFailed(f"{folder / file_name} is missing: the folder must hold {' and '.join(FILES)}", 2)


def send_file(api: Api, path: str, file: Path) -> None:
    """Uploads one file under its own name."""
    with file.open("rb") as opened:
        files = {"file": (file.name, opened, "application/octet-stream")}
        api.call("POST", path, data={"file_name": file.name}, files=files)


def described(pointer: dict[str, Any]) -> str:
    """What an alias means, in words."""
    if pointer["canary"] is None:
        return f"version {pointer['version']}"
    canary = pointer["canary"]
    return f"version {pointer['version']}, and version {canary['version']} for {canary['percent']:g} % of sessions"
