"""`lorikeet serve`: the gateway and its runtimes until a signal."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Coroutine
from typing import Annotated, Any

import msgspec
import typer

from gateway.commands.loading import LoadingBars
from gateway.commands.options import (
    AsJson,
    CommandFailed,
    Config,
    DataDir,
    admin,
    print_json,
    settings_of,
)
from gateway.diagnostics import log_to_stderr
from gateway.interruption import Interrupted, until_signalled, until_stdin_ends
from gateway.runtime_address import remote_runtimes
from gateway.runtime_config import local_folders, model_folders
from gateway.settings import DEMO_MODEL, Settings, SettingsError
from gateway.supervisor import Stack, StartFailed, run_stack

DEV_ACCOUNT = "development"
DEV_TOKEN = "lorikeet serve --dev"  # noqa: S105 - the name of the token, not the token


def serve(
    config: Config = None,
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; overrides server.host.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = None,
    dev: Annotated[bool, typer.Option("--dev", help="Make a development account and token, and print them.")] = False,
    as_json: AsJson = False,
    follow_stdin: Annotated[bool, typer.Option("--follow-stdin", hidden=True, help="Stop when stdin ends.")] = False,
) -> None:
    """Serve the gateway and one runtime per configured base without an address. Stop with Ctrl-C or SIGTERM."""
    log_to_stderr(logging.WARNING if as_json else logging.INFO)
    settings = _override(settings_of(config, data_dir), host, port)
    folders = model_folders(settings)
    if not folders:
        raise CommandFailed('nothing to serve: set demo_model = true or give a base, [models."@cf/..."] path = ...', 78)
    for model, folder in folders.items():
        if not folder.is_dir():
            raise CommandFailed(f'[models."{model}"] path = {str(folder)!r}: no such folder', 78)
    try:
        remote_runtimes(settings)
    except SettingsError as error:
        raise CommandFailed(f"settings: {error}", 78) from error
    work = _serve(settings, dev, as_json)
    try:
        asyncio.run(until_signalled(_with_parent(work) if follow_stdin else work))
    except* StartFailed as failures:
        raise CommandFailed(str(failures.exceptions[0]), 78) from None
    except* Interrupted:
        pass  # asked to stop, and stopped


async def _with_parent(work: Coroutine[Any, Any, None]) -> None:
    """`work`, ended like by a signal when standard input ends."""
    serving, parent = asyncio.ensure_future(work), asyncio.ensure_future(until_stdin_ends())
    try:
        await asyncio.wait({serving, parent}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        parent.cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving


def _override(settings: Settings, host: str | None, port: int | None) -> Settings:
    server = msgspec.structs.replace(
        settings.server,
        host=settings.server.host if host is None else host,
        port=settings.server.port if port is None else port,
    )
    return msgspec.structs.replace(settings, server=server)


async def _serve(settings: Settings, dev: bool, as_json: bool) -> None:
    folders = local_folders(settings)
    with LoadingBars(sorted(folders), quiet=as_json) as bars:
        async with run_stack(settings, folders, bars.said) as stack:
            token = await _development_token(settings) if dev else None
            bars.stop()
            _announce(stack, sorted(model_folders(settings)), token, as_json)
            try:
                await asyncio.Event().wait()  # for ever: a signal cancels it
            finally:
                if not as_json:
                    print("stopping ...", file=sys.stderr)


async def _development_token(settings: Settings) -> tuple[str, str]:
    """(account id, token). The token is new at every start and the last one is revoked: none is kept in a file."""
    async with admin(settings) as client:
        accounts = {account.name: account for account in await client.list_accounts()}
        account = accounts.get(DEV_ACCOUNT) or await client.create_account(DEV_ACCOUNT)
        for old in await client.list_tokens(account.id):
            if old.name == DEV_TOKEN and old.status == "active":
                await client.revoke_token(old.id)
        _, secret = await client.create_token(account.id, DEV_TOKEN)
        return account.id, secret


def _announce(stack: Stack, models: list[str], token: tuple[str, str] | None, as_json: bool) -> None:
    processes = {child.name: child.process.pid for child in stack.children if child.process is not None}
    if as_json:
        kv_bytes = {model: memory.kv_bytes for model, memory in stack.memory.items()}
        found = {"url": stack.url, "models": models, "processes": processes, "kv_bytes": kv_bytes}
        print_json(found | ({"account": token[0], "token": token[1]} if token else {}))
        sys.stdout.flush()
        return
    print(f"\nLorikeet serves {', '.join(models)} on {stack.url}   (Ctrl-C stops it)\n")
    if token is not None:
        print(_curls(stack.url, *token), flush=True)


def _curls(url: str, account: str, token: str) -> str:
    """Three lines to paste: a native call, a stream, and an OpenAI call."""
    root = f"{url}/client/v4/accounts/{account}/ai"
    auth = f'-H "Authorization: Bearer {token}"'
    question = "What does Molbury sell?"
    chat = f'{{"model": "{DEMO_MODEL}", "messages": [{{"role": "user", "content": "{question}"}}]}}'
    return (
        f"account  {account}\ntoken    {token}\n\n"
        f'curl {root}/run/{DEMO_MODEL} {auth} -d \'{{"prompt": "{question}"}}\'\n\n'
        f'curl -N {root}/run/{DEMO_MODEL} {auth} -d \'{{"prompt": "{question}", "stream": true}}\'\n\n'
        f"curl {root}/v1/chat/completions {auth} -d '{chat}'\n"
    )
