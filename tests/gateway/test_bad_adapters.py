"""Uploads that are no adapters at all, or far too much of one: archives, pickles, crowds of tensors, giant headers.

Each is refused with its reason, soon, in little memory; nothing of it is unpacked, run or kept.
"""

import gzip
import io
import json
import pickle
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gateway.ingest.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterRefused, check_adapter, check_weights_file
from gateway.ingest.inspection import inspect_folder
from gateway.ingest.safetensors_header import MAX_REASONS
from gateway.settings import Adapters
from tests.gateway import tiny_adapters as tiny
from tests.gateway.finetune_calls import nothing_left, refusal
from tests.gateway.plane import Plane, Tenant, open_plane

MIB = 1024 * 1024
LIMITS = Adapters(max_rank=8, max_bytes=300 * MIB, max_per_account=6)


class Canary:
    """What unpickling would do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.mkdir, (self.folder,))


def zipped(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


def tarred(name: str, data: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def torch_file(value: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def header_file(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def crowd(count: int) -> bytes:
    """A file without a fault of its own, of so many tensors of one element."""
    entries = {f"t{n}": {"dtype": "F16", "shape": [1], "data_offsets": [2 * n, 2 * n + 2]} for n in range(count)}
    return header_file(entries, bytes(2 * count))


ARCHIVES: dict[str, Callable[[Path], bytes]] = {
    "zip": lambda folder: zipped(WEIGHTS_FILE, tiny.weights()),
    "zip that leads outside": lambda folder: zipped("../../../../tmp/x", tiny.weights()),
    "zip bomb": lambda folder: zipped(WEIGHTS_FILE, bytes(50 * MIB)),
    "tar.gz": lambda folder: tarred("../x", tiny.weights()),
    "gzip": lambda folder: gzip.compress(tiny.weights()),
    "7z": lambda folder: b"7z\xbc\xaf\x27\x1c\0\4" + bytes(100),
    "zstd": lambda folder: b"\x28\xb5\x2f\xfd" + bytes(100),
    "pickle": lambda folder: pickle.dumps(Canary(folder / "canary")),
    "torch": lambda folder: torch_file({"a": Canary(folder / "canary")}),
    "torch, the old way": lambda folder: torch_file(Canary(folder / "canary"), _use_new_zipfile_serialization=False),
    "numpy": lambda folder: b"\x93NUMPY\1\0" + bytes(100),
    "gguf": lambda folder: b"GGUF" + bytes(100),
    "html": lambda folder: b"<!doctype html><title>404</title>",
    "git lfs": lambda folder: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 80000000\n",
}


@pytest.mark.parametrize("file_name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("kind", ARCHIVES)
async def test_what_is_no_safetensors_file(
    plane: Plane, tenant: Tenant, tmp_path: Path, kind: str, file_name: str
) -> None:
    finetune = await plane.create(tenant, "x")
    reply = await plane.upload(tenant, finetune, file_name, ARCHIVES[kind](tmp_path))
    assert refusal(reply) == (400, 5006), reply.text
    assert reply.json()["errors"][0]["meta"]["reasons"]
    assert nothing_left(plane)
    assert not (tmp_path / "canary").exists()


def test_the_canary_sings(tmp_path: Path) -> None:
    """Otherwise its silence above would say nothing."""
    pickle.loads(ARCHIVES["pickle"](tmp_path))
    assert (tmp_path / "canary").is_dir()


async def test_ten_thousand_tiny_tensors(tmp_path: Path) -> None:
    async with open_plane(tmp_path, LIMITS) as plane:
        tenant = await plane.tenant("one")
        finetune = await plane.create(tenant, "x")
        await plane.upload(tenant, finetune, CONFIG_FILE, tiny.config())
        began = time.process_time()
        reply = await plane.upload(tenant, finetune, WEIGHTS_FILE, crowd(10_000))
        assert refusal(reply) == (400, 5006), reply.text
        assert 2 <= len(reply.json()["errors"][0]["meta"]["reasons"]) <= 2 * (MAX_REASONS + 1)
        assert len(reply.content) < 20_000
        assert time.process_time() - began < 5
        shown = await plane.call(tenant, "GET", f"/{finetune}")
        assert shown["status"] == "failed"


def test_ten_thousand_tensors_with_the_right_names(tmp_path: Path) -> None:
    """Two thousand five hundred times as many layers as the base has."""
    names = [tiny.tensor_name(layer, "q_proj", side) for layer in range(5000) for side in "AB"]
    entries = {name: {"dtype": "F16", "shape": [1], "data_offsets": [2 * n, 2 * n + 2]} for n, name in enumerate(names)}
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(header_file(entries, bytes(2 * len(names))))
    began = time.process_time()
    with pytest.raises(AdapterRefused) as error:
        check_adapter(tiny.config(), path, tiny.GEOMETRY, 8)
    assert len(error.value.reasons) <= MAX_REASONS + 1
    assert time.process_time() - began < 5


def giant_header(path: Path, length: int) -> None:
    """A header of so many bytes, of which the file system keeps a few: the rest is a hole."""
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + b'{"__metadata__":{"x":"')
        file.truncate(8 + length)


def test_a_header_of_100_mb_costs_neither_time_nor_memory(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS_FILE
    giant_header(path, 100_000_000)
    (tmp_path / CONFIG_FILE).write_bytes(tiny.config())
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(AdapterRefused, match="100000000 bytes; at most 1000000"):
            check_weights_file(path)
        assert not inspect_folder(tmp_path, tiny.GEOMETRY, LIMITS).ok
        assert time.process_time() - began < 0.5
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


async def test_a_header_of_100_mb_over_http(tmp_path: Path) -> None:
    """Under the 2024 limits the body is cut off while it comes; where large files are allowed the header is judged."""
    whole = (100_000_000).to_bytes(8, "little") + b"{" + b" " * 99_999_999
    for limits, status, code in ((Adapters(limits="launch"), 413, 3006), (Adapters(limits="free"), 400, 5006)):
        async with open_plane(tmp_path / str(status), limits) as plane:
            tenant = await plane.tenant("one")
            finetune = await plane.create(tenant, "x")
            reply = await plane.upload(tenant, finetune, WEIGHTS_FILE, whole)
            assert refusal(reply) == (status, code), reply.text
            assert nothing_left(plane)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda entries: entries["b"].update(data_offsets=[0, 4]), "overlaps"),
        (lambda entries: entries["b"].update(data_offsets=[2, 6]), "overlaps"),
        (lambda entries: entries["b"].update(data_offsets=[4, 2**40], shape=[2**39 - 2]), "truncated"),
        (lambda entries: entries["b"].update(data_offsets=[8, 12]), "hole"),
    ],
)
async def test_tensors_that_lie_about_their_place(
    plane: Plane, tenant: Tenant, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    entries: dict[str, Any] = {
        "a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]},
        "b": {"dtype": "F16", "shape": [2], "data_offsets": [4, 8]},
    }
    change(entries)
    finetune = await plane.create(tenant, "x")
    reply = await plane.upload(tenant, finetune, WEIGHTS_FILE, header_file(entries, bytes(8)))
    assert refusal(reply) == (400, 5006), reply.text
    assert any(why in reason for reason in reply.json()["errors"][0]["meta"]["reasons"]), reply.text
    assert nothing_left(plane)


async def test_a_tensor_named_twice(plane: Plane, tenant: Tenant) -> None:
    """The stock loader takes the last of them; whoever looks at the file sees the first."""
    one = '"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}'
    text = f"{{{one},{one}}}".encode()
    finetune = await plane.create(tenant, "x")
    reply = await plane.upload(tenant, finetune, WEIGHTS_FILE, len(text).to_bytes(8, "little") + text + bytes(4))
    assert refusal(reply) == (400, 5006), reply.text
    assert "twice" in reply.text
    assert nothing_left(plane)
