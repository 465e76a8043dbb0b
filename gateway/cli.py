"""The `lorikeet` command: each group is a file in `commands/`; this file joins them and prints errors as sentences."""

import errno
import sys

import typer

from gateway.commands import (
    accounts,
    adapter_files,
    adapter_versions,
    adapters,
    cache,
    cache_simulate,
    demo,
    logs,
    runtime,
    serve,
    tokens,
)
from gateway.commands.options import CommandFailed

app = typer.Typer(
    name="lorikeet",
    help="Self-hosted edge AI gateway: many accounts' LoRA fine-tunes from one base model, in one batch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command("serve")(serve.serve)
app.command("runtime")(runtime.runtime)
app.command("demo")(demo.demo)
app.add_typer(accounts.app, name="accounts")
app.add_typer(tokens.app, name="tokens")
adapters.app.command("replace")(adapter_versions.replace)
adapters.app.command("versions")(adapter_versions.versions)
adapters.app.command("point")(adapter_versions.point)
adapters.app.command("rollback")(adapter_versions.rollback)
adapters.app.command("pull")(adapter_files.pull)
adapters.app.command("merge")(adapter_files.merge)
app.add_typer(adapters.app, name="adapters")
cache.app.command("simulate")(cache_simulate.simulate)
app.add_typer(cache.app, name="cache")
app.add_typer(logs.app, name="logs")


def main() -> None:
    """Entry point. A `CommandFailed` becomes its sentence on standard error and its exit code."""
    try:
        app()
    except CommandFailed as failure:
        print(f"lorikeet: {failure}", file=sys.stderr)
        raise SystemExit(failure.exit_code) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:  # of a table, say: the output's device is full, and a trace would not help
            raise
        print(f"lorikeet: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
