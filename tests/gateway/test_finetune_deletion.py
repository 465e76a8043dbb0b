"""Deleting what is in use: refused or drained by choice, exact against requests that are just beginning."""

import asyncio
import logging
from pathlib import Path

import pytest

from gateway.backends.fake import FakeBackend
from gateway.errors import FinetuneInUse, FinetuneNotFound
from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from gateway.messages import ResolvedAdapter, ResolvedRequest
from gateway.settings import DEMO_MODEL
from storage.errors import StorageUnavailable
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import make_ready, nothing_left, replace
from tests.gateway.plane import MODEL, Plane, Tenant
from tests.gateway.stack import RUN, events, open_stack
from tests.turns import growing_turns


async def resolved(plane: Plane, tenant: Tenant, lora: str) -> ResolvedAdapter:
    return await plane.finetunes.resolve(tenant.identity, plane.catalog.get(MODEL), lora)


async def settled(plane: Plane) -> None:
    """Until no removal waits any more."""
    while plane.finetunes._desk.retirement.num_draining:
        await asyncio.sleep(0)


async def test_refused_while_in_use_and_nothing_changes(plane: Plane, tenant: Tenant) -> None:
    finetune = await make_ready(plane, tenant, "x")
    adapter, stored = await resolved(plane, tenant, "x"), plane.stored()
    with plane.finetunes.uses.hold(adapter, "r"):
        assert await plane.call(tenant, "DELETE", "/x?when_in_use=refuse", status=409) == 7012
        with pytest.raises(FinetuneInUse, match="1 requests"):
            await plane.finetunes.delete(tenant.id, finetune, "refuse")
        detail = await plane.call(tenant, "GET", "/x")
        assert (detail["in_use"], detail["status"]) == (1, "ready")
        with plane.finetunes.uses.hold(await resolved(plane, tenant, "x"), "r"):
            assert (await plane.call(tenant, "GET", "/x/versions/1"))["in_use"] == 2
    assert (plane.stored(), plane.spooled(), plane.backend.forgotten) == (stored, [], [])
    await plane.call(tenant, "DELETE", "/x?when_in_use=refuse")
    assert nothing_left(plane)
    assert plane.backend.forgotten == [adapter.digest]


async def test_drained_while_in_use(plane: Plane, tenant: Tenant) -> None:
    """The name is free at once; objects and tiers are freed with the last answer."""
    await make_ready(plane, tenant, "x")
    adapter, stored = await resolved(plane, tenant, "x"), plane.stored()
    with plane.finetunes.uses.hold(adapter, "a"):
        with plane.finetunes.uses.hold(adapter, "b"):
            assert (await plane.call(tenant, "DELETE", "/x"))["in_use"] == 2
            with pytest.raises(FinetuneNotFound):
                await resolved(plane, tenant, "x")
            assert await plane.call(tenant, "GET", "/x", status=404) == 7003
            assert (plane.stored(), plane.backend.forgotten) == (stored, [])
        assert plane.stored() == stored
        await make_ready(plane, tenant, "x", seed=9)
    await settled(plane)
    assert plane.backend.forgotten == [adapter.digest]
    assert len(plane.stored()) == 3
    assert plane.spooled() == []
    await plane.call(tenant, "DELETE", "/x")
    assert nothing_left(plane)


async def test_the_choice_must_be_one(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x")
    for wrong in ("", "later", "REFUSE"):
        assert await plane.call(tenant, "DELETE", f"/x?when_in_use={wrong}", status=400) == 7001
    assert (await plane.finetunes.get(tenant.id, "x")).status == "ready"


async def test_a_request_between_resolve_and_answer_is_not_served_by_halves(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x")
    adapter = await resolved(plane, tenant, "x")
    await plane.call(tenant, "DELETE", "/x?when_in_use=refuse")
    with pytest.raises(FinetuneNotFound, match="Finetune x not found"), plane.finetunes.uses.hold(adapter, "r"):
        pass
    assert nothing_left(plane)


async def test_a_delete_that_fails_lets_requests_in_again(
    plane: Plane, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_ready(plane, tenant, "x")
    adapter = await resolved(plane, tenant, "x")

    async def broken(*_: object) -> bool:
        raise StorageUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr("gateway.finetune_rows.remove", broken)
        with pytest.raises(StorageUnavailable):
            await plane.finetunes.delete(tenant.id, "x")
    with plane.finetunes.uses.hold(adapter, "r"):
        assert len(plane.stored()) == 3
    assert plane.backend.forgotten == []


async def test_a_removed_version_drains_too_while_the_others_serve(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    old = await resolved(plane, tenant, "x")
    with plane.finetunes.uses.hold(old, "r"):
        await replace(plane, tenant, "x", 2)
        assert await plane.call(tenant, "DELETE", "/x/versions/1?when_in_use=refuse", status=409) == 7012
        await plane.call(tenant, "DELETE", "/x/versions/1")
        assert old.object_key in plane.stored()
        new = await resolved(plane, tenant, "x")
        with plane.finetunes.uses.hold(new, "r2"):
            assert plane.backend.forgotten == []
    await settled(plane)
    assert plane.backend.forgotten == [old.digest]
    assert old.object_key not in plane.stored()
    assert new.object_key in plane.stored()


async def test_versions_that_are_superseded_drain(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    old = await resolved(plane, tenant, "x")
    with plane.finetunes.uses.hold(old, "r"):
        for seed in range(2, 7):
            await replace(plane, tenant, "x", seed)
        assert [v.number for v in (await plane.finetunes.get(tenant.id, "x")).versions] == [2, 3, 4, 5, 6]
        assert old.object_key in plane.stored()
    await settled(plane)
    assert old.object_key not in plane.stored()
    assert plane.backend.forgotten == [old.digest]


async def test_weights_that_another_finetune_has_are_not_waited_for(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "a")
    await make_ready(plane, tenant, "b")
    shared = await resolved(plane, tenant, "b")
    with plane.finetunes.uses.hold(shared, "r"):
        await plane.call(tenant, "DELETE", "/a")
        assert plane.finetunes._desk.retirement.num_draining == 0
        assert plane.spooled() == []
        await plane.call(tenant, "DELETE", "/b")
        assert plane.finetunes._desk.retirement.num_draining == 1
        await make_ready(plane, tenant, "c")  # the same weights once more, while the old ones drain
    await settled(plane)
    assert plane.backend.forgotten == []
    assert shared.object_key in plane.stored()
    assert (await resolved(plane, tenant, "c")).object_key == shared.object_key


async def test_what_drains_when_the_gateway_stops_is_removed_at_the_next_start(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x")
    adapter = await resolved(plane, tenant, "x")
    with plane.finetunes.uses.hold(adapter, "r"):
        await plane.call(tenant, "DELETE", "/x")
        await plane.finetunes.aclose()
    assert adapter.object_key in plane.stored()
    assert await plane.finetunes.sweep() == 1
    heard = list[str]()

    async def hear(digest: str) -> None:
        heard.append(digest)

    await plane.finetunes.forget_swept(hear)
    assert heard == [adapter.digest]
    assert nothing_left(plane)


async def test_a_store_that_is_away_while_it_drains(
    plane: Plane, tenant: Tenant, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await make_ready(plane, tenant, "x")
    adapter = await resolved(plane, tenant, "x")

    async def broken(key: str) -> None:
        raise StorageUnavailable("no network")

    caplog.set_level(logging.WARNING)
    with monkeypatch.context() as patched:
        patched.setattr(plane.objects, "delete", broken)
        with plane.finetunes.uses.hold(adapter, "r"):
            await plane.call(tenant, "DELETE", "/x")
        await settled(plane)
    assert "stay until the next start" in caplog.text
    assert adapter.object_key in plane.stored()
    assert await plane.finetunes.sweep() == 1
    heard = list[str]()

    async def hear(digest: str) -> None:
        heard.append(digest)

    await plane.finetunes.forget_swept(hear)
    assert heard == [adapter.digest]
    assert nothing_left(plane)


async def test_a_delete_cancelled_at_every_point(plane: Plane, tenant: Tenant) -> None:
    """Either it is there with all its objects, or it is gone with all of them; and a user is never cut off."""
    await make_ready(plane, tenant, "x")
    for turns in growing_turns():
        adapter = await resolved(plane, tenant, "x")
        task = asyncio.create_task(plane.finetunes.delete(tenant.id, "x"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        assert plane.spooled() == []
        if await plane.finetunes.list_finetunes(tenant.id):
            with plane.finetunes.uses.hold(adapter, "r"):
                assert len(plane.stored()) == 3
            continue
        assert plane.stored() == []
        assert plane.backend.forgotten[-1:] == [adapter.digest]
        with pytest.raises(FinetuneNotFound), plane.finetunes.uses.hold(adapter, "r"):
            pass
        if not isinstance(done, asyncio.CancelledError):
            break
        await make_ready(plane, tenant, "x")
    assert turns > 3


async def test_uses_are_counted_and_survive_a_restart(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    assert (await plane.call(tenant, "GET", "/x"))["last_used_at"] is None
    adapter = await resolved(plane, tenant, "x")
    for _ in range(3):
        with plane.finetunes.uses.hold(adapter, "r"):
            pass
    before = await plane.call(tenant, "GET", "/x")
    assert (before["requests"], before["versions"][0]["requests"]) == (3, 3)
    assert before["last_used_at"] is not None
    await plane.finetunes.aclose()
    assert await plane.call(tenant, "GET", "/x") == before
    row = (await plane.finetunes.get(tenant.id, "x")).versions[0]
    assert (row.requests, plane.finetunes.uses.take_unwritten()) == (3, {})


async def test_uses_that_cannot_be_written_are_kept(
    plane: Plane, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    adapter = await resolved(plane, tenant, "x")

    async def broken(*_: object) -> None:
        with plane.finetunes.uses.hold(adapter, "r"):
            raise StorageUnavailable("gone")

    with plane.finetunes.uses.hold(adapter, "r"):
        pass
    with monkeypatch.context() as patched:
        patched.setattr("gateway.finetune_rows.note_uses", broken)
        await plane.finetunes.write_uses()
    assert (await plane.finetunes.get(tenant.id, "x")).versions[0].requests == 2
    await plane.finetunes.write_uses()
    assert (await plane.finetunes.get(tenant.id, "x")).versions[0].requests == 2


async def test_an_answer_under_way_holds_its_adapter_to_its_last_byte(tmp_path: Path) -> None:
    """Through the whole gateway: a stream begins, the adapter is replaced and deleted, the stream ends well."""
    gate = asyncio.Event()

    def script(request: ResolvedRequest) -> list[str | asyncio.Event]:
        return ["one", gate, " two"]

    fake = FakeBackend(script)
    async with open_stack(tmp_path, fake) as stack:
        account = stack.account
        from gateway.demo import ADAPTERS_FOLDER

        made = await stack.post("/ai/finetunes", {"model": DEMO_MODEL, "name": "x"})
        assert made.status_code == 200
        for file_name in (CONFIG_FILE, WEIGHTS_FILE):
            reply = await stack.client.post(
                stack.url("/ai/finetunes/x/finetune-assets"),
                data={"file_name": file_name},
                files={"file": ("blob", (ADAPTERS_FOLDER / "tides-json" / file_name).read_bytes())},
            )
            assert reply.status_code == 200, reply.text
        answer = asyncio.create_task(stack.post(RUN, {"prompt": "x", "lora": "x", "stream": True}))
        await fake.until(lambda: fake.open == 1)
        finetunes = stack.services.finetunes
        key = (await finetunes.get(account, "x")).object_key
        busy = await stack.client.delete(stack.url("/ai/finetunes/x?when_in_use=refuse"))
        assert (busy.status_code, busy.json()["errors"][0]["code"]) == (409, 7012)
        assert int(busy.headers["retry-after"]) >= 1
        deleted = await stack.client.delete(stack.url("/ai/finetunes/x"))
        assert deleted.json()["result"]["in_use"] == 1
        assert (await stack.post(RUN, {"prompt": "x", "lora": "x"})).json()["errors"][0]["code"] == 3037
        assert key is not None
        assert await stack.services.objects.size(key) > 0
        gate.set()
        reply = await answer
        assert reply.headers["lorikeet-adapter-version"] == "1"
        assert [e["response"] for e in events(reply.text) if e != "[DONE]" and e["response"]] == ["one", " two"]
        while finetunes._desk.retirement.num_draining:
            await asyncio.sleep(0)
        assert not list((tmp_path / "data" / "objects").rglob("*.lora"))


async def test_a_caller_that_leaves_lets_go_of_the_adapter(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    adapter = await resolved(plane, tenant, "x")

    async def answer() -> None:
        with plane.finetunes.uses.hold(adapter, "r"):
            await asyncio.Event().wait()

    task = asyncio.create_task(answer())
    await asyncio.sleep(0)
    assert plane.finetunes.uses.count(adapter.finetune_id, (1,)) == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert plane.finetunes.uses.count(adapter.finetune_id, (1,)) == 0
    assert not plane.finetunes.uses.uses_object(adapter.object_key)


async def test_an_upload_to_a_version_that_is_deleted_meanwhile(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    await plane.call(tenant, "POST", "/x/versions")
    await plane.call(tenant, "DELETE", "/x/versions/2")
    reply = await plane.upload(tenant, "x/versions/2", CONFIG_FILE, tiny.config())
    assert (reply.status_code, reply.json()["errors"][0]["code"]) == (404, 7003)
    assert len(plane.stored()) == 3
