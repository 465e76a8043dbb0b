"""A real S3 server for the tests: OpenStack Swift with its S3 face, four processes on loopback, one replica.

Debian and Ubuntu have it as packages; nothing else is needed. Every process belongs to the caller, dies with
`Swift.stop`, and keeps its files in the given folder, which must be on a file system with extended attributes.
"""

import os
import pwd
import shutil
import socket
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

INSTALL = "apt-get install -y --no-install-recommends swift-proxy swift-account swift-container swift-object"
REGION = "us-east-1"
ACCESS_KEY_ID = "test:tester"
SECRET_ACCESS_KEY = "testing"
_KINDS = ("object", "container", "account")
_PATH = "/usr/bin:/usr/sbin:/bin"

_BACKEND = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {etc}
devices = {devices}
mount_check = false
workers = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""

_PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {etc}
workers = 0
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
[filter:cache]
use = egg:swift#memcache
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
""" + "".join(
    f"[filter:{name}]\nuse = egg:swift#{name}\n"
    for name in ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "slo", "dlo")
)

_RING_MAKER = """\
import sys
from swift.common.ring import RingBuilder
for word in sys.argv[1:]:
    kind, port = word.split(":")
    builder = RingBuilder(4, 1, 0)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "d1", "weight": 1.0, "meta": ""}
    builder.add_dev(device)
    builder.rebalance()
    builder.get_ring().save(f"{kind}.ring.gz")
"""


def why_not(folder: Path) -> str | None:
    """A sentence for the skip line when Swift cannot run here, else None."""
    if shutil.which("swift-proxy-server", path=_PATH) is None:
        return f"no S3 server to test against; {INSTALL}"
    probe = folder / "xattr"
    probe.touch()
    try:
        os.setxattr(probe, "user.swift.probe", b"1")
    except OSError:
        return f"{folder} has no extended attributes, which Swift needs; use another --basetemp"
    return None


@dataclass
class Swift:
    """A running server; `endpoint` speaks S3 with path-style addresses."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start(folder: Path, region: str = REGION) -> Swift:
    """Writes the settings, starts the four servers and waits until they answer."""
    etc, devices = folder / "etc", folder / "devices"
    etc.mkdir(parents=True)
    (devices / "d1").mkdir(parents=True)
    ports = _free_ports(len(_KINDS) + 1)
    swift = Swift(folder, ports[-1])
    common = {"user": _user(), "etc": etc, "devices": devices}
    (etc / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_suffix = s\nswift_hash_path_prefix = p\n"
        "[storage-policy:0]\nname = p0\ndefault = yes\n"
    )
    _rings(etc, dict(zip(_KINDS, ports, strict=False)))
    for kind, port in zip(_KINDS, ports, strict=False):
        (etc / f"{kind}-server.conf").write_text(_BACKEND.format(kind=kind, port=port, **common))
    (etc / "proxy-server.conf").write_text(_PROXY.format(port=swift.port, region=region, **common))
    try:
        for kind in (*_KINDS, "proxy"):
            with (folder / f"{kind}.log").open("wb") as log:
                command = [f"swift-{kind}-server", str(etc / f"{kind}-server.conf")]
                swift.processes.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": _PATH, "HOME": str(folder)})
                )
        _wait_until_up(swift)
    except BaseException:
        swift.stop()
        raise
    return swift


def _user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _rings(etc: Path, ports: dict[str, int]) -> None:
    """Where each kind is. One process of Swift's own Python for all: its command would be nine."""
    command = Path(shutil.which("swift-ring-builder", path=_PATH) or "")
    python = command.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#!").strip()
    words = [f"{kind}:{port}" for kind, port in ports.items()]
    done = subprocess.run(
        [python, "-c", _RING_MAKER, *words], cwd=etc, env={"PATH": _PATH}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"Swift's rings: {done.stderr}")


def _wait_until_up(swift: Swift, patience_s: float = 30.0) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        for process in swift.processes:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended: {_logs(swift)}")
        try:
            with urllib.request.urlopen(f"{swift.endpoint}/healthcheck", timeout=1):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"Swift did not come up: {_logs(swift)}") from None
            time.sleep(0.05)


def _logs(swift: Swift) -> str:
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in swift.folder.glob("*.log"))
