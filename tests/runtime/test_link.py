"""The connection itself: how it comes back. What goes over it is in `test_client.py`."""

import asyncio
from pathlib import Path

import pytest

from runtime.client import RuntimeClient
from runtime.link import Address


@pytest.mark.parametrize(("over", "longest"), [("socket", 0.2), ("tcp", 2.0)])
async def test_attempts_come_seldomer_up_to_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: str, longest: float
) -> None:
    """Who waits for a runtime of this machine that starts hears of it within a fifth of a second."""
    pauses, enough, sleep = list[float](), asyncio.Event(), asyncio.sleep

    async def passed(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            enough.set()
        await sleep(0)

    async def refused(address: Address) -> None:
        raise ConnectionRefusedError(f"nobody at {address}")

    monkeypatch.setattr("runtime.link.asyncio.sleep", passed)
    monkeypatch.setattr("runtime.link.random.uniform", lambda low, high: high)
    monkeypatch.setattr(Address, "open", refused)
    client = (
        RuntimeClient(socket_path=tmp_path / "r.sock", gateway_id="g")
        if over == "socket"
        else RuntimeClient(host="127.0.0.1", port=1, gateway_id="g")
    )
    async with client:
        await asyncio.wait_for(enough.wait(), 10)
        assert "nobody at" in (client.problem or "")
    assert pauses[0] == 0.05
    assert pauses[:12] == sorted(pauses[:12])
    assert pauses[11] == longest


@pytest.mark.parametrize(("socket_path", "host"), [(None, None), ("r.sock", "localhost")])
def test_one_address_is_named(socket_path: str | None, host: str | None) -> None:
    with pytest.raises(ValueError, match="either socket_path or host"):
        Address(socket_path, host, 1)
