"""`lorikeet demo`: the main job end to end, in a temporary folder."""

import asyncio

import typer

from gateway.interruption import Interrupted, until_signalled


def demo() -> None:
    """Serve the demo base, upload three adapters for two accounts, ask them all at once, log and export. Takes
    under a minute, needs no GPU and no server, leaves nothing behind."""
    from rich.console import Console

    from gateway.demo.story import play

    try:
        code = asyncio.run(until_signalled(play(Console())))
    except Interrupted as interrupted:
        code = 128 + interrupted.number
    raise typer.Exit(code)
