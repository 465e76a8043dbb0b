"""The two files come back byte for byte, from every version; lists by pages."""

import pytest

from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE
from storage.errors import StorageUnavailable
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import make_ready, replace
from tests.gateway.plane import Plane, Tenant


async def test_files_come_back_as_they_were_sent(plane: Plane, tenant: Tenant) -> None:
    await make_ready(plane, tenant, "x", seed=1)
    await replace(plane, tenant, "x", 2)
    for path, seed in (("", 2), ("/versions/1", 1), ("/versions/2", 2)):
        for file_name, sent in ((CONFIG_FILE, tiny.config()), (WEIGHTS_FILE, tiny.weights(tiny.tensors(seed=seed)))):
            reply = await plane.http.get(
                f"{tenant.root}/ai/finetunes/x{path}/finetune-assets/{file_name}", headers=tenant.headers
            )
            assert reply.content == sent
            assert reply.headers["content-length"] == str(len(sent))
            assert reply.headers["content-type"] == "application/octet-stream"
            assert reply.headers["cache-control"] == "private, no-store"
            detail = await plane.call(tenant, "GET", f"/x{path}" if path else "/x/versions/2")
            assert (
                f'"{next(f["sha256"] for f in detail["files"] if f["file_name"] == file_name)}"'
                == reply.headers["etag"]
            )


@pytest.mark.parametrize("file_name", ["other.bin", "..%2f..%2fetc%2fpasswd", "%2e%2e", "adapter_config.json%00", "."])
async def test_only_the_two_files_are_there(plane: Plane, tenant: Tenant, file_name: str) -> None:
    await make_ready(plane, tenant, "x")
    reply = await plane.http.get(f"{tenant.root}/ai/finetunes/x/finetune-assets/{file_name}", headers=tenant.headers)
    assert reply.status_code in (404, 405), reply.text


async def test_a_file_that_is_not_there_yet(plane: Plane, tenant: Tenant) -> None:
    await plane.create(tenant, "x")
    assert await plane.call(tenant, "GET", f"/x/finetune-assets/{CONFIG_FILE}", status=404) == 7003


async def test_a_store_that_is_away_is_a_status_and_not_half_a_file(
    plane: Plane, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_ready(plane, tenant, "x")
    (plane.folder / "objects" / next(key for key in plane.stored() if key.endswith(".safetensors"))).unlink()
    with pytest.raises((StorageUnavailable, Exception), match="no object"):
        await plane.http.get(f"{tenant.root}/ai/finetunes/x/finetune-assets/{WEIGHTS_FILE}", headers=tenant.headers)


async def test_the_list_comes_by_pages_when_asked(plane: Plane, tenant: Tenant) -> None:
    for name in "abcde":
        await plane.create(tenant, name)
    for query, names in (
        ("page=1&per_page=2", "ab"),
        ("page=3&per_page=2", "e"),
        ("page=4&per_page=2", ""),
        ("page=2", ""),
    ):
        reply = await plane.http.get(f"{tenant.root}/ai/finetunes?{query}", headers=tenant.headers)
        assert "".join(row["name"] for row in reply.json()["result"]) == names
        assert reply.json()["result_info"]["total_count"] == 5
    assert await plane.call(tenant, "GET", "?page=0", status=400) == 7001
    plain = await plane.http.get(f"{tenant.root}/ai/finetunes", headers=tenant.headers)
    assert "result_info" not in plain.json()
    assert len(plain.json()["result"]) == 5
