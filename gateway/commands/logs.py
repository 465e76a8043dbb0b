"""`lorikeet logs`: export an account's exchanges as training data."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gateway.commands.api import AccountId, Api, Token, Url
from gateway.commands.options import CommandFailed, Config, settings_of

app = typer.Typer(help="Read what was logged.", no_args_is_help=True)


@app.callback()
def logs() -> None:
    """Read what was logged."""


@app.command()
def export(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (default: standard output).")
    ] = None,
    export_format: Annotated[
        Literal["openai_chat"], typer.Option("--format", help="Shape of the lines.")
    ] = "openai_chat",
    feedback: Annotated[int | None, typer.Option(help="Only logs with this feedback: 1 or -1.")] = None,
    gateway: Annotated[str, typer.Option(help="Gateway id.")] = "default",
    config: Config = None,
    url: Url = None,
    account: AccountId = None,
    token: Token = None,
) -> None:
    """Write exchanges as OpenAI chat JSONL, one conversation a line."""
    if feedback not in (None, -1, 1):
        raise CommandFailed(f"--feedback {feedback}: must be 1 or -1", 2)
    api = Api.of_account(settings_of(config).client, url, account, token)
    params: dict[str, str | int] = {"format": export_format}
    if feedback is not None:
        params["feedback"] = feedback
    try:
        with contextlib.nullcontext(sys.stdout.buffer) if output is None else output.open("wb") as file:
            lines = api.copy(f"/ai-gateway/gateways/{gateway}/logs/export", params, file)
            file.flush()
    except BrokenPipeError:
        raise  # `| head` has what it wanted: the command ends without a word, as other filters do
    except OSError as error:
        raise CommandFailed(f"{output or 'standard output'}: cannot be written ({error.strerror})") from error
    print(
        f"{lines} conversation{'' if lines == 1 else 's'}{'' if output is None else f' in {output}'}", file=sys.stderr
    )
