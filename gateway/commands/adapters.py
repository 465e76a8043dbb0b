"""`lorikeet adapters`: check a PEFT folder offline, upload it, list and remove what is there."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from gateway.commands.api import AccountId, Api, Token, Url
from gateway.commands.options import AsJson, CommandFailed, Config, print_json, print_rows, settings_of
from gateway.errors import LorikeetError
from gateway.settings import DEMO_MODEL, SettingsError

FILES = ("adapter_config.json", "adapter_model.safetensors")

app = typer.Typer(help="LoRA adapters (fine-tunes) of an account.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="PEFT folder with adapter_config.json and adapter_model.safetensors.")]
Model = Annotated[str, typer.Option("--model", help="Base model, by its catalogue name.")]


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
    inspection = inspect_folder(folder, found.geometry, settings.adapters)
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
    config: Config = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Create a fine-tune and upload both files. A refused upload leaves nothing behind."""
    for file_name in FILES:
        if not (folder / file_name).is_file():
            raise CommandFailed(f"{folder / file_name} is missing: the folder must hold {' and '.join(FILES)}", 2)
    api = Api(settings_of(config).client, url, account, token)
    body = {"model": model, "name": name, "description": description}
    finetune_id = api.result("POST", "/ai/finetunes", json=body)["id"]
    try:
        for file_name in FILES:
            with (folder / file_name).open("rb") as file:
                api.call(
                    "POST",
                    f"/ai/finetunes/{finetune_id}/finetune-assets",
                    data={"file_name": file_name},
                    files={"file": (file_name, file, "application/octet-stream")},
                )
    except CommandFailed:
        api.call("DELETE", f"/ai/finetunes/{finetune_id}")
        raise
    details = api.result("GET", f"/ai/finetunes/{finetune_id}")
    if as_json:
        print_json(details)
    else:
        print(f"{name} is {details['status']}: rank {details['rank']}, id {finetune_id}")


@app.command("list")
def list_adapters(
    config: Config = None, url: Url = None, account: AccountId = None, token: Token = None, as_json: AsJson = False
) -> None:
    """List the account's fine-tunes."""
    rows = Api(settings_of(config).client, url, account, token).result("GET", "/ai/finetunes")
    if as_json:
        print_json(rows)
        return
    columns = ("id", "name", "model", "status", "created_at")
    print_rows("fine-tunes", columns, [[str(row.get(column, "")) for column in columns] for row in rows])


@app.command()
def remove(
    finetune: Annotated[str, typer.Argument(help="Name or id.")],
    config: Config = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
) -> None:
    """Delete a fine-tune: its files, its packed weights, its place in every tier."""
    Api(settings_of(config).client, url, account, token).call("DELETE", f"/ai/finetunes/{finetune}")
    print(f"{finetune} is removed")
