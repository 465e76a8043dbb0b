"""`lorikeet tokens`: API tokens of an account. The secret is shown once; only its hash is kept."""

import asyncio
import time
from typing import Annotated

import msgspec
import typer

from gateway.commands.options import AsJson, CommandFailed, Config, DataDir, admin, print_json, print_rows, settings_of
from gateway.permissions import PERMISSIONS

app = typer.Typer(help="API tokens of an account (operator).", no_args_is_help=True)

AccountId = Annotated[str, typer.Argument(help="Account id.")]


@app.command()
def create(
    account_id: AccountId,
    name: Annotated[str, typer.Option("--name", help="What the token is for.")] = "token",
    permission: Annotated[
        list[str] | None,
        typer.Option("--permission", help=f"Repeatable; default: all of {', '.join(PERMISSIONS)}."),
    ] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.0, max=36500.0, help="Default: never expires.")] = None,
    config: Config = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Create a token and print its secret, this once."""
    unknown = sorted(set(permission or ()) - set(PERMISSIONS))
    if unknown:
        raise CommandFailed(f"--permission {unknown[0]}: not known; there are {', '.join(PERMISSIONS)}", 2)
    expires_at = None if expires_in_days is None else time.time() + 86400 * expires_in_days

    async def work() -> None:
        async with admin(settings_of(config, data_dir)) as client:
            token, secret = await client.create_token(account_id, name, permission or list(PERMISSIONS), expires_at)
        if as_json:
            print_json(msgspec.to_builtins(token) | {"token": secret})
        else:
            print(f"token {token.name} ({token.id}), shown this once:\n{secret}")

    asyncio.run(work())


@app.command("list")
def list_tokens(
    account_id: AccountId, config: Config = None, data_dir: DataDir = None, as_json: AsJson = False
) -> None:
    """List an account's tokens, without their secrets."""

    async def work() -> None:
        async with admin(settings_of(config, data_dir)) as client:
            tokens = await client.list_tokens(account_id)
        if as_json:
            print_json(msgspec.to_builtins(tokens))
            return
        print_rows(
            "tokens",
            ("id", "name", "status", "permissions"),
            [(token.id, token.name, token.status, ", ".join(token.permissions)) for token in tokens],
        )

    asyncio.run(work())


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="Token id.")],
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke a token; a running gateway refuses it from the next call on."""

    async def work() -> None:
        async with admin(settings_of(config, data_dir)) as client:
            await client.revoke_token(token_id)
        print(f"token {token_id} is revoked")

    asyncio.run(work())
