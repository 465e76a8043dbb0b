"""Names and ids that look like paths, addresses or other names: no file outside the deployment's folders is touched.

Every file and socket operation of the process is seen by an audit hook while callers send words that have been made to
lead elsewhere. Folders are opened step by step inside the object store, so a relative name must be a single step.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.errors import LorikeetError
from storage.errors import ObjectMissing
from storage.tiers import Tiers
from tests.gateway.finetune_calls import make_ready
from tests.gateway.plane import MODEL, Plane, Tenant, open_plane

FILES = {
    "open": 1, "os.listdir": 1, "os.scandir": 1, "os.mkdir": 1, "os.rmdir": 1, "os.remove": 1, "os.chmod": 1,
    "os.truncate": 1, "os.utime": 1, "os.rename": 2, "os.link": 2, "os.symlink": 2, "shutil.rmtree": 1,
    "shutil.copyfile": 2, "shutil.move": 2, "sqlite3.connect": 1,
}  # fmt: skip  # event -> how many of its arguments are paths
NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.bind", "subprocess.Popen", "os.system", "os.exec")


class Watch:
    """What an audit hook saw outside `allowed` while it was on. Hooks cannot be taken away: one for all tests."""

    allowed: tuple[Path, ...] = ()
    active = False
    seen: list[str] = []  # noqa: RUF012 - the one hook's
    calls = 0

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        if not cls.active:
            return
        if event in NETWORK:
            cls.seen.append(f"{event} {arguments[1:]}")
        for path in arguments[: FILES.get(event, 0)]:
            cls.calls += 1
            if isinstance(path, int) or not cls._strays(os.fspath(path)):
                continue
            cls.seen.append(f"{event} {path!r}")

    @classmethod
    def _strays(cls, path: str | bytes) -> bool:
        text = os.fsdecode(path)
        if not text.startswith("/"):
            return "/" in text or text in ("..", ".")  # below an open folder: one step, and down
        real = Path(os.path.normpath(text))
        return not any(real.is_relative_to(root) for root in cls.allowed)


sys.addaudithook(Watch.hook)


@contextmanager
def watched(*allowed: Path) -> Iterator[None]:
    """Raises AssertionError at the end when anything else was touched."""
    # The interpreter's own: modules are imported late, tracebacks read their sources.
    Watch.allowed = (*allowed, Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2], Path("/dev/urandom"))
    Watch.seen, Watch.active = [], True
    try:
        yield
    finally:
        Watch.active = False
    assert Watch.seen == []


def test_the_watch_sees_what_strays(tmp_path: Path) -> None:
    """Its silence would mean nothing otherwise."""
    (tmp_path / "in").mkdir()
    folder = os.open(tmp_path / "in", os.O_RDONLY)
    strays: tuple[Callable[[], object], ...] = (
        lambda: (tmp_path / "in" / ".." / "out").mkdir(),
        lambda: open("/etc/passwd").close(),
        lambda: os.close(os.open("../out", os.O_RDONLY, dir_fd=folder)),
        lambda: os.rename(tmp_path / "in", tmp_path / "away"),
    )
    for stray in strays:
        with pytest.raises(AssertionError), watched(tmp_path / "in"):
            stray()
    os.close(folder)


PIECES = st.sampled_from([
    "..", ".", "/", "\\", "../", "..\\", "%2e%2e%2f", "%252e", "..%c0%af", "/etc/passwd", "//", "~", "~root", "C:\\",
    "CON", "\\\\host\\share", "file:///etc/passwd", "http://169.254.169.254/latest", "s3://bucket/x", "//127.0.0.1/x",
    "\0", "\n", "\uff0e\uff0e\uff0f", "\u2025\uff0f", "\u2215", "\u2044", "\uff41", "\xe9", "\u0435", "\u200b",
    "\u202e", "\ufdfd", "\ud83d", "\U0001f600", "x", "helper", "@", "@1", "@v1", "@beta", "@..", "?", "#", ";", "&",
    "*", "$HOME", "`id`", "$(id)", "'", '"', "|", "<", "%", "%00", " ", "packed", "objects", "adapters", "lorikeet.db",
    "cf-public-", "0" * 64, "a" * 300,
])  # fmt: skip
WORDS = st.lists(PIECES, min_size=1, max_size=4).map("".join) | st.text(min_size=1, max_size=20)
CALLS = [
    ("GET", "/{}"), ("DELETE", "/{}"), ("PATCH", "/{}"), ("POST", "/{}/finetune-assets"), ("POST", "/{}/versions"),
    ("GET", "/{}/versions/{}"), ("GET", "/{}/finetune-assets/{}"), ("GET", "/helper/finetune-assets/{}"),
    ("GET", "/helper/versions/{}/finetune-assets/{}"), ("PUT", "/helper/aliases/{}"), ("DELETE", "/helper/aliases/{}"),
]  # fmt: skip


async def try_everything(plane: Plane, tenant: Tenant, word: str) -> None:
    """The word in every place where a caller can put one."""
    at = f"{tenant.root}/ai/finetunes"
    safe = quote(word.encode("utf-8", "surrogatepass"), safe="").replace(".", "%2E")  # clients resolve bare dots
    for method, path in CALLS:
        reply = await plane.http.request(
            method,
            at + path.replace("{}", safe),
            headers=tenant.headers,
            content=json.dumps({"version": 1, "description": word}),
        )
        assert reply.status_code < 500, (method, path, word, reply.text)
    created = await plane.http.post(at, headers=tenant.headers, content=json.dumps({"model": MODEL, "name": word}))
    assert created.status_code in (200, 400), created.text
    upload = await plane.upload(tenant, "helper", word.encode("utf-8", "replace").decode(), b"{}")
    assert upload.status_code in (400, 413), upload.text
    word = word.encode("utf-8", "replace").decode()  # JSON with half a character is refused before it comes here
    for lora in (word, f"helper@{word}", f"{word}@1"):
        try:
            found = await plane.finetunes.resolve(tenant.identity, plane.catalog.get(MODEL), lora)
        except LorikeetError:
            continue
        assert found.object_key.startswith(f"adapters/{tenant.id}/")
    with suppress(LorikeetError):
        await plane.finetunes.find_for_operator(word)
    if created.status_code == 200:
        gone = await plane.http.delete(f"{at}/{created.json()['result']['id']}", headers=tenant.headers)
        assert gone.status_code == 200


async def test_no_word_of_a_caller_leads_outside(tmp_path: Path) -> None:
    folder = tmp_path / "deployment"
    folder.mkdir()
    (tmp_path / "secret").write_text("not yours")
    async with open_plane(folder) as plane:
        tenant, stranger = await plane.tenant("one"), await plane.tenant("two")
        await make_ready(plane, tenant, "helper")
        foreign = await make_ready(plane, stranger, "theirs")
        before = {path: path.read_bytes() for path in (folder / "objects").rglob("*") if path.is_file()}
        words: list[str] = []

        @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(WORDS)
        @example("../../../secret")
        @example(str(tmp_path / "secret"))
        @example(foreign)
        @example(f"../{stranger.id}/theirs")
        @example(f"{stranger.id}/theirs")
        def collect(word: str) -> None:
            words.append(word)

        collect()
        calls = Watch.calls
        with watched(folder):
            for word in words:
                if word == "helper":
                    continue
                await try_everything(plane, tenant, word)
        assert Watch.calls > calls + len(words), "the watch was asleep"
        after = {path: path.read_bytes() for path in (folder / "objects").rglob("*") if path.is_file()}
        assert after == before
        assert (tmp_path / "secret").read_text() == "not yours"
        assert (await plane.finetunes.get(stranger.id, "theirs")).status == "ready"


async def test_no_reference_leads_a_tier_outside(tmp_path: Path) -> None:
    """What a runtime is told by a gateway that is not one of ours: digest and key become names only after a check."""
    async with open_plane(tmp_path / "deployment") as plane:
        tiers = Tiers(plane.objects, tmp_path / "tiers", memory_bytes=10**6, disk_bytes=10**6)
        await tiers.open()
        references: list[tuple[str, str]] = []

        @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(WORDS | st.just("0" * 64), WORDS | st.just("adapters/x"))
        @example("../" + "0" * 61, "adapters/x")
        @example("0" * 64, "../../etc/passwd")
        @example("0" * 64 + "\n", "adapters/x")
        @example("0" * 64, "adapters/x\n")
        @example("0" * 64, "/etc/passwd")
        def collect(digest: str, key: str) -> None:
            references.append((digest, key))

        collect()
        with watched(tmp_path / "deployment", tmp_path / "tiers"):
            for digest, key in references:
                with pytest.raises((ValueError, ObjectMissing)):
                    await tiers.fetch(digest, key, 100)
                with pytest.raises((ValueError, ObjectMissing)):
                    await tiers.keep(digest, key, 100)
                await tiers.forget(digest)
                assert tiers.resident(digest) is None
        assert [path.name for path in (tmp_path / "tiers" / "packed").iterdir()] == []
        await tiers.aclose()
