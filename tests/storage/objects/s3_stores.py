"""Stores in the buckets of a server of tests."""

from contextlib import suppress
from typing import Any

from storage.objects.s3 import S3Objects
from tests.storage.objects import swift


async def open_store(endpoint: str, bucket: str, **changes: Any) -> S3Objects:
    """With the server's keys, unless `changes` has others."""
    settings: dict[str, Any] = {
        "bucket": bucket,
        "endpoint": endpoint,
        "region": swift.REGION,
        "access_key_id": swift.ACCESS_KEY_ID,
        "secret_access_key": swift.SECRET_ACCESS_KEY,
    }
    return await S3Objects.open(**(settings | changes))


async def make_bucket(store: S3Objects, bucket: str) -> None:
    """If it is not there."""
    with suppress(store._client.exceptions.BucketAlreadyOwnedByYou):
        await store._client.create_bucket(Bucket=bucket)
