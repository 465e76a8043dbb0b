"""`lorikeet accounts`: tenants of this deployment. For the operator: it needs the data folder, not a token."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from gateway.commands.options import AsJson, Config, DataDir, admin, print_json, print_rows, settings_of
from runtime.protocol import MAX_WEIGHT, MIN_WEIGHT

Weight = Annotated[
    float,
    typer.Option(
        min=MIN_WEIGHT, max=MAX_WEIGHT, help="Share of the service beside the other accounts' when they compete."
    ),
]
app = typer.Typer(help="Accounts of this deployment (operator).", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Unique name.")],
    weight: Weight = 1.0,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create an account and print its id."""

    async def work() -> None:
        async with admin(settings_of(config, data_dir), create=True) as client:
            account = await client.create_account(name, weight)
        if as_json:
            print_json(msgspec.to_builtins(account))
        else:
            print(f"account {account.name}: {account.id}")

    asyncio.run(work())


@app.command("list")
def list_accounts(config: Config = None, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List all accounts."""

    async def work() -> None:
        async with admin(settings_of(config, data_dir)) as client:
            accounts = await client.list_accounts()
        if as_json:
            print_json(msgspec.to_builtins(accounts))
            return
        rows = [
            (a.id, a.name, f"{a.weight:g}", datetime.fromtimestamp(a.created_at, UTC).isoformat(" ", "seconds"))
            for a in accounts
        ]
        print_rows("accounts", ("id", "name", "weight", "created"), rows)

    asyncio.run(work())


@app.command("set")
def set_account(
    account_id: Annotated[str, typer.Argument(help="Account id.")],
    weight: Weight,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Change an account's share of the service; it counts from the account's next request on."""

    async def work() -> None:
        async with admin(settings_of(config, data_dir)) as client:
            account = await client.set_weight(account_id, weight)
        if as_json:
            print_json(msgspec.to_builtins(account))
        else:
            print(f"account {account.name}: weight {account.weight:g}")

    asyncio.run(work())


@app.command()
def delete(
    account_id: Annotated[str, typer.Argument(help="Account id.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Delete an account with its tokens; its calls are refused from the next one on."""

    async def work() -> None:
        async with admin(settings_of(config, data_dir)) as client:
            await client.delete_account(account_id)
        print(f"account {account_id} is deleted")

    asyncio.run(work())
