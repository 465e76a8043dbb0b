"""Objects in an S3 bucket: AWS, Cloudflare R2, OpenStack Swift, or any server with the same REST calls.

A stream of up to one part is one PutObject; a longer one is a multipart upload, which is visible only when completed
and is aborted on any failure or cancellation. Requests with no body to replay are retried by botocore (standard mode,
bounded). Only Content-MD5 guards uploads: newer checksum headers are refused by Swift and older servers. Memory: one
part per put, `CHUNK_BYTES` per get; callers bound how many run at once.

This is the only file that knows aiobotocore; its errors become those of `storage.errors` here.
"""

import asyncio
import base64
import hashlib
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Final

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from storage.errors import ObjectMissing, ObjectTooLarge, StorageError, StorageFull, StorageUnavailable
from storage.objects.base import check_key, check_range
from storage.threads import finish

CHUNK_BYTES: Final = 1024 * 1024
PART_BYTES: Final = 8 * 1024 * 1024
MAX_PARTS: Final = 10_000
_ABORT_S: Final = 15.0

_MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
_FULL = frozenset({"InsufficientStorage", "InsufficientCapacity", "QuotaExceeded", "ServiceQuotaExceeded",
                   "XMinioStorageFull", "EntityTooLarge"})  # fmt: skip
_REFUSED = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "403"})

logger = logging.getLogger(__name__)


class S3Objects:
    """`ObjectStore` over one bucket, made by `open`."""

    def __init__(self, client: Any, bucket: str, request_timeout_s: float, stack: AsyncExitStack) -> None:
        self._client = client
        self._bucket = bucket
        self._timeout_s = request_timeout_s
        self._stack = stack

    @classmethod
    async def open(
        cls,
        *,
        bucket: str,
        endpoint: str = "",
        region: str = "auto",
        access_key_id: str = "",
        secret_access_key: str = "",
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 30.0,
        request_timeout_s: float = 120.0,
        max_attempts: int = 4,
    ) -> "S3Objects":
        """Makes the client; asks the server nothing, so a server that is down now may come up later.

        Without `endpoint` it is AWS. Without keys the usual AWS chain (role of the machine, profile) is asked.
        `request_timeout_s` bounds one request up to its answer's head, with its retries and one part's upload; the
        client's own timeouts do not run while it sends or waits for leave to send.
        Raises StorageUnavailable when endpoint, region or bucket name cannot be used.
        """
        config = AioConfig(
            region_name=region or None,
            signature_version="s3v4",
            connect_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            max_pool_connections=32,
            retries={"mode": "standard", "total_max_attempts": max_attempts},
            s3={"addressing_style": "path" if endpoint else "auto"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            ignore_configured_endpoint_urls=True,
        )
        stack = AsyncExitStack()
        async with _request(f"bucket {bucket}", request_timeout_s):
            try:
                client = await stack.enter_async_context(
                    get_session().create_client(
                        "s3",
                        endpoint_url=endpoint or None,
                        aws_access_key_id=access_key_id or None,
                        aws_secret_access_key=secret_access_key or None,
                        config=config,
                    )
                )
            except ValueError as error:  # botocore's word for an endpoint that is no URL
                raise StorageUnavailable(f"bucket {bucket}: {error}") from error
        return cls(client, bucket, request_timeout_s, stack)

    async def put(self, key: str, data: AsyncIterable[bytes], *, max_bytes: int) -> int:
        """See `ObjectStore.put`."""
        check_key(key)
        upload = _Upload(self._client, self._bucket, key, self._timeout_s)
        part_bytes = max(PART_BYTES, -(-max_bytes // MAX_PARTS))
        size, pending = 0, bytearray()
        try:
            async for chunk in data:
                size += len(chunk)
                if size > max_bytes:
                    raise ObjectTooLarge(f"object {key} is larger than {max_bytes} bytes")
                pending += chunk
                while len(pending) > part_bytes:
                    part = bytes(memoryview(pending)[:part_bytes])
                    del pending[:part_bytes]
                    await upload.part(part)
            await upload.end(bytes(pending))
        except BaseException:
            await finish(upload.abort())
            raise
        return size

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """See `ObjectStore.get`."""
        check_range(start, length)
        if length == 0:
            await self.size(key)
            return
        wanted: dict[str, str] = {}
        if start or length is not None:
            wanted["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        async with _request(f"object {check_key(key)}", self._timeout_s):
            try:
                answer = await self._client.get_object(Bucket=self._bucket, Key=key, **wanted)
            except ClientError as error:
                if _status(error) == 416:
                    return  # the range begins at or after the end
                raise
        async with answer["Body"] as body:
            while True:
                async with _request(f"object {key}", self._timeout_s):
                    chunk = await _read(body)
                if not chunk:
                    return
                yield chunk

    async def size(self, key: str) -> int:
        """See `ObjectStore.size`. Asks for one byte: a HEAD cannot say whether key or bucket is missing, and some
        servers (Swift under eventlet) answer it with a body that breaks the connection."""
        async with _request(f"object {check_key(key)}", self._timeout_s):
            try:
                answer = await self._client.get_object(Bucket=self._bucket, Key=key, Range="bytes=0-0")
            except ClientError as error:
                if _status(error) == 416:
                    return 0  # not even one byte
                raise
            async with answer["Body"] as body:
                await body.read()
        return (
            int(answer["ContentRange"].rpartition("/")[2]) if "ContentRange" in answer else int(answer["ContentLength"])
        )

    async def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        with suppress(ObjectMissing):
            async with _request(f"object {check_key(key)}", self._timeout_s):
                await self._client.delete_object(Bucket=self._bucket, Key=key)

    async def aclose(self) -> None:
        """See `ObjectStore.aclose`."""
        await self._stack.aclose()


class _Upload:
    """One put. Begins as nothing; the first `part` makes it a multipart upload with an id that must be ended."""

    def __init__(self, client: Any, bucket: str, key: str, request_timeout_s: float) -> None:
        self._client = client
        self._timeout_s = request_timeout_s
        self._place = {"Bucket": bucket, "Key": key}
        self._what = f"object {key}"
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []

    async def part(self, data: bytes) -> None:
        if self._id is None:
            await finish(self._begin())  # cancelled half-way, there would be an upload whose id nobody knows
        number = len(self._parts) + 1
        async with _request(self._what, self._timeout_s):
            answer = await self._client.upload_part(
                **self._place, UploadId=self._id, PartNumber=number, **await _body(data)
            )
        self._parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    async def end(self, rest: bytes) -> None:
        if self._id is None:
            async with _request(self._what, self._timeout_s):
                await self._client.put_object(**self._place, **await _body(rest))
            return
        await self.part(rest)
        await finish(self._complete())

    async def abort(self) -> None:
        """Ends a multipart upload that was begun and not completed; the server drops its parts."""
        if self._id is None:
            return
        try:
            async with _request(self._what, _ABORT_S):
                try:
                    await self._client.abort_multipart_upload(**self._place, UploadId=self._id)
                except ClientError as error:
                    if _code(error) != "NoSuchUpload":  # already gone
                        raise
        except StorageError as error:
            logger.warning("a multipart upload of %s stays open until the bucket expires it: %s", self._what, error)
        self._id = None

    async def _begin(self) -> None:
        async with _request(self._what, self._timeout_s):
            self._id = (await self._client.create_multipart_upload(**self._place))["UploadId"]

    async def _complete(self) -> None:
        async with _request(self._what, self._timeout_s):
            try:
                await self._client.complete_multipart_upload(
                    **self._place, UploadId=self._id, MultipartUpload={"Parts": self._parts}
                )
            except ClientError as error:
                if _code(error) != "NoSuchUpload" or not await self._is_there():
                    raise
        self._id = None

    async def _is_there(self) -> bool:
        """Whether the object is ours: a repeated completion is told NoSuchUpload when only the answer was lost."""
        try:
            digests = b"".join(bytes.fromhex(part["ETag"].strip('"')) for part in self._parts)
        except ValueError:
            return False  # not a server whose ETags can be foretold
        expected = f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(self._parts)}"
        return bool((await self._client.head_object(**self._place))["ETag"].strip('"') == expected)


async def _body(data: bytes) -> dict[str, Any]:
    digest = await asyncio.to_thread(lambda: hashlib.md5(data, usedforsecurity=False).digest())
    return {"Body": io.BytesIO(data), "ContentMD5": base64.b64encode(digest).decode(), "ContentLength": len(data)}


async def _read(body: Any) -> bytes:
    """The next `CHUNK_BYTES`; fewer only at the end. The socket's small pieces would cost a reader one hop each."""
    pieces, size = [], 0
    while size < CHUNK_BYTES:
        piece = await body.read(CHUNK_BYTES - size)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


@asynccontextmanager
async def _request(what: str, timeout_s: float) -> AsyncIterator[None]:
    """Bounds a request in time and translates its errors. `what` begins their text."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except ClientError as error:
        code, status = _code(error), _status(error)
        if code in _MISSING:
            raise ObjectMissing(f"{what}: there is none") from error
        if code in _FULL or status in (413, 507):
            raise StorageFull(f"{what}: the bucket takes no more ({error})") from error
        hint = "; check storage.access_key_id and storage.secret_access_key" if code in _REFUSED else ""
        hint = "; create it or set storage.bucket" if code == "NoSuchBucket" else hint
        raise StorageUnavailable(f"{what}: {error}{hint}") from error
    except (BotoCoreError, HTTPClientError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise StorageUnavailable(f"{what}: the object store does not answer: {str(error) or 'timed out'}") from error
