"""Objects in a bucket: the conformance suite against a real server, and a server that is not there or misbehaves."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from storage.errors import ObjectMissing, StorageFull, StorageUnavailable
from storage.objects.base import ObjectStore, single
from storage.objects.s3 import PART_BYTES, S3Objects
from tests.storage.objects import swift
from tests.storage.objects.conformance import MIB, ObjectStoreConformance, Source, put, read
from tests.storage.objects.s3_stores import make_bucket, open_store

BUCKET = "lorikeet"


@pytest.fixture
async def store(server: swift.Swift) -> AsyncIterator[S3Objects]:
    """An empty bucket's store: every test begins alone."""
    store = await open_store(server.endpoint, BUCKET)
    await make_bucket(store, BUCKET)
    for entry in (await store._client.list_objects_v2(Bucket=BUCKET)).get("Contents", []):
        await store.delete(entry["Key"])
    yield store
    await store.aclose()


async def _open_uploads(store: S3Objects) -> list[str]:
    answer = await store._client.list_multipart_uploads(Bucket=BUCKET)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


class TestConformance(ObjectStoreConformance):
    @pytest.fixture
    def store(self, store: S3Objects) -> S3Objects:
        return store

    async def left_overs(self, store: ObjectStore) -> list[str]:
        assert isinstance(store, S3Objects)
        return await _open_uploads(store)


@pytest.mark.parametrize("size", [PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES, 20 * MIB + 7])
async def test_sizes_around_a_part(store: S3Objects, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    await put(store, "parts", data)
    assert await read(store, "parts") == data
    etag = (await store._client.head_object(Bucket=BUCKET, Key="parts"))["ETag"]
    assert ("-" in etag) == (size > PART_BYTES)  # how S3 marks an object that came in parts


async def test_an_open_upload_is_seen_by_the_check_for_left_overs(store: S3Objects) -> None:
    """The control of every `left_overs == []` above."""
    answer = await store._client.create_multipart_upload(Bucket=BUCKET, Key="open")
    assert await _open_uploads(store) == ["open"]
    await store._client.abort_multipart_upload(Bucket=BUCKET, Key="open", UploadId=answer["UploadId"])


async def test_cancelled_at_any_request_a_multipart_put_leaves_nothing_open(store: S3Objects) -> None:
    """Cancels while request 1, 2, 3.. of the upload is on its way, until a put gets through."""
    for victim in range(1, 20):
        requests, reached = 0, asyncio.Event()

        def count(victim: int = victim, reached: asyncio.Event = reached, **_: Any) -> None:
            nonlocal requests
            requests += 1
            if requests == victim:
                reached.set()

        store._client.meta.events.register("before-send.s3", count, unique_id="count")
        task = asyncio.create_task(store.put("cut", Source(bytes(MIB), 17), max_bytes=32 * MIB))
        waiter = asyncio.create_task(reached.wait())
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        waiter.cancel()
        task.cancel()
        done = (await asyncio.gather(task, return_exceptions=True))[0]
        store._client.meta.events.unregister("before-send.s3", unique_id="count")
        assert await _open_uploads(store) == []
        if not isinstance(done, asyncio.CancelledError):
            break
    assert done == 17 * MIB
    assert victim == 6  # create, three parts, complete; and one that never came


@pytest.mark.parametrize("arrived", [True, False])
async def test_the_last_answer_of_an_upload_may_get_lost(store: S3Objects, arrived: bool) -> None:
    """AWS tells a repeated completion NoSuchUpload (Swift does not, so the answer is made up); the object decides."""
    client, complete = store._client, store._client.complete_multipart_upload
    await put(store, "twice", b"old")

    async def lost(**arguments: Any) -> Any:
        if arrived:
            await complete(**arguments)
        raise ClientError({"Error": {"Code": "NoSuchUpload"}}, "CompleteMultipartUpload")

    client.complete_multipart_upload = lost
    data = bytes(PART_BYTES + 1)
    try:
        if arrived:
            await put(store, "twice", data)
        else:
            with pytest.raises(StorageUnavailable):
                await put(store, "twice", data)
    finally:
        client.complete_multipart_upload = complete
    assert await store.size("twice") == (len(data) if arrived else 3)
    assert await _open_uploads(store) == []


async def test_a_bucket_that_is_not_there(server: swift.Swift) -> None:
    store = await open_store(server.endpoint, "other")
    with pytest.raises(StorageUnavailable, match=r"storage\.bucket"):
        await store.put("a", single(b"x"), max_bytes=10)
    with pytest.raises((StorageUnavailable, ObjectMissing)):
        await read(store, "a")
    await store.aclose()


async def test_a_wrong_secret_is_refused_and_not_shown(server: swift.Swift) -> None:
    store = await open_store(server.endpoint, BUCKET, secret_access_key="not-the-secret")
    with pytest.raises(StorageUnavailable, match=r"storage\.secret_access_key") as caught:
        await store.put("a", single(b"x"), max_bytes=10)
    assert "not-the-secret" not in str(caught.value)
    await store.aclose()


async def _everything_unavailable(store: S3Objects) -> None:
    for call in (
        store.put("a", single(b"x"), max_bytes=10),
        store.put("a", Source(bytes(MIB), 9), max_bytes=10 * MIB),
        read(store, "a"),
        store.size("a"),
        store.delete("a"),
    ):
        with pytest.raises(StorageUnavailable):
            await asyncio.wait_for(call, 30)


async def test_an_endpoint_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = await open_store(f"http://127.0.0.1:{port}", BUCKET, max_attempts=1)
    await _everything_unavailable(store)
    await store.aclose()


async def test_a_server_that_never_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        store = await open_store(endpoint, BUCKET, max_attempts=1, request_timeout_s=0.2)
        await _everything_unavailable(store)
        await store.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 500 No\r\nContent-Length: 4\r\nConnection: close\r\n\r\n<<<<",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
async def test_a_server_that_breaks_off(answer: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        store = await open_store(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", BUCKET, max_attempts=1)
        with pytest.raises(StorageUnavailable):
            await asyncio.wait_for(read(store, "a"), 30)
        await store.aclose()


async def test_a_full_bucket() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        store = await open_store(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", BUCKET, max_attempts=1)
        with pytest.raises(StorageFull):
            await asyncio.wait_for(store.put("a", single(b"x"), max_bytes=10), 30)
        await store.aclose()


async def test_an_endpoint_that_is_no_address() -> None:
    with pytest.raises(StorageUnavailable):
        await open_store("not an address", BUCKET)


async def test_amazon_and_r2_addresses(tmp_path: Path) -> None:
    """Opening asks nobody; the client's own view of where requests would go is what a wrong setting would change."""
    r2 = await open_store("https://account.r2.cloudflarestorage.com", BUCKET, region="auto")
    assert r2._client.meta.endpoint_url == "https://account.r2.cloudflarestorage.com"
    assert r2._client.meta.region_name == "auto"
    await r2.aclose()
    aws = await open_store("", BUCKET, region="eu-central-1")
    assert aws._client.meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"
    await aws.aclose()
