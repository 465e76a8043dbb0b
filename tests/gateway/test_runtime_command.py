"""`lorikeet runtime` before it becomes a runtime: what it refuses, and where its secret comes from."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.commands import runtime as command
from gateway.commands.options import CommandFailed
from gateway.demo import BASE_FOLDER
from gateway.settings import DEMO_MODEL
from runtime.config import RuntimeConfig

SECRET = "0123456789abcdef"


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> list[RuntimeConfig]:
    """What the command would become; tests in `tests/e2e` let it."""
    seen: list[RuntimeConfig] = []
    monkeypatch.setattr(command, "_become", lambda text: seen.append(msgspec.json.decode(text, type=RuntimeConfig)))
    return seen


def _run(folder: Path, text: str = "", **options: Any) -> None:
    (folder / "lorikeet.toml").write_text(text)
    arguments = {"model": DEMO_MODEL, "listen": None, "token_file": None, "data_dir": folder / "data"}
    command.runtime(**{**arguments, "config": folder / "lorikeet.toml", **options})


def _model(address: str, more: str = "") -> str:
    return f'[models."{DEMO_MODEL}"]\npath = "{BASE_FOLDER}"\naddress = "{address}"\n{more}'


def test_it_listens_where_the_gateways_look(
    tmp_path: Path, become: list[RuntimeConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path, _model("tcp://10.0.0.7:7000", f'[runtime]\ntoken = "{SECRET}"\nmemory = 600_000_000\n'))
    _run(tmp_path, _model("tcp://10.0.0.7:7000", f'token = "{SECRET}2"\n'), listen="tcp://0.0.0.0:7000")
    _run(tmp_path, _model("unix:/run/x.sock"))
    assert [(c.host, c.port, c.socket_path, c.token) for c in become] == [
        ("10.0.0.7", 7000, "", SECRET), ("0.0.0.0", 7000, "", SECRET + "2"), ("", 0, "/run/x.sock", ""),
    ]  # fmt: skip
    assert 0 < become[0].kv_bytes < 200_000_000
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "keys and values" in shown.err


def test_a_secret_in_a_file_is_its_owners(tmp_path: Path, become: list[RuntimeConfig]) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o644)
    with pytest.raises(CommandFailed, match="anybody may read this secret"):
        _run(tmp_path, listen="tcp://h:1", token_file=file)
    file.chmod(0o600)
    _run(tmp_path, listen="tcp://h:1", token_file=file)
    assert [config.token for config in become] == [SECRET]


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("", {}, r"where to listen is missing: set \[models"),
        ("", {"listen": "runtime.sock"}, "is no address of a runtime"),
        ("", {"listen": "tcp://0.0.0.0:7000"}, "shared secret of at least 16 characters"),
        ("", {"listen": "unix:/s", "token_file": Path("/nowhere")}, "/nowhere: cannot be read"),
        ("", {"listen": "unix:/s", "model": "@cf/no/such"}, "@cf/no/such is not configured"),
        ("[runtime]\nmemory = 2000000\n", {"listen": "unix:/s"}, "a budget of 2 MiB is too small"),
    ],
)
def test_what_it_refuses(
    tmp_path: Path, become: list[RuntimeConfig], text: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(CommandFailed, match=said):
        _run(tmp_path, text, **options)
    assert not become
