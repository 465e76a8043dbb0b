"""Settings: what is wrong is named with its key, its value and what is allowed."""

from pathlib import Path

import pytest

from gateway.settings import SettingsError, adapter_limits, inherited_environ, load


def _write(folder: Path, text: str) -> Path:
    path = folder / "lorikeet.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(environ={})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8787)
    assert (settings.adapters.max_rank, settings.adapters.max_bytes, settings.adapters.max_per_account) == (
        8, 100_000_000, 30,
    )  # fmt: skip


def test_limits_of_adapters_are_a_preset_and_numbers_of_ones_own_go_before(tmp_path: Path) -> None:
    for text, expected in (
        ('limits = "launch"', (8, 100_000_000, 30)),
        ('limits = "today"', (32, 300_000_000, 100)),
        ('limits = "free"', (512, 10_000_000_000, 100_000)),
        ('limits = "today"\nmax_rank = 64\nmax_per_account = 7', (64, 300_000_000, 7)),
        ("max_bytes = 5000", (8, 5000, 30)),
    ):
        adapters = load(_write(tmp_path, f"[adapters]\n{text}"), {}).adapters
        assert (adapters.max_rank, adapters.max_bytes, adapters.max_per_account) == expected
    assert load(environ={"LORIKEET_ADAPTERS__LIMITS": "today"}).adapters.max_rank == 32
    with pytest.raises(SettingsError, match=r"adapters\.limits = 'more': .*'launch', 'today', 'free'"):
        load(_write(tmp_path, '[adapters]\nlimits = "more"'), {})


def test_no_rank_is_taken_that_the_device_pool_could_never_hold(tmp_path: Path) -> None:
    settings = load(_write(tmp_path, '[adapters]\nlimits = "today"\n[runtime]\nadapter_rows = 16'), {})
    assert adapter_limits(settings).max_rank == 16
    assert adapter_limits(load(_write(tmp_path, '[adapters]\nlimits = "today"'), {})).max_rank == 32


def test_no_size_is_taken_that_the_memory_tier_could_never_hold(tmp_path: Path) -> None:
    for tiers, size in (
        ("memory_bytes = 64_000_000", 64_000_000),
        ("memory_bytes = 9_000_000_000", 300_000_000),
        ("", 300_000_000),
    ):
        settings = load(_write(tmp_path, f'[adapters]\nlimits = "today"\n[tiers]\n{tiers}'), {})
        assert adapter_limits(settings).max_bytes == size


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, '[server]\nport = 1000\nhost = "::1"\n[models."@cf/google/gemma-2b-it-lora"]\npath = "/w"')
    settings = load(path, {"LORIKEET_SERVER__PORT": "2000", "LORIKEET_DATA_DIR": "/var/lib/lorikeet"})
    assert (settings.server.port, settings.server.host, settings.data_dir) == (2000, "::1", "/var/lib/lorikeet")
    assert settings.models["@cf/google/gemma-2b-it-lora"].path == "/w"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    path = _write(tmp_path, "[adapters]\nmax_rank = 32")
    assert load(environ={"LORIKEET_CONFIG": str(path)}).adapters.max_rank == 32


def test_a_file_in_the_working_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, "[adapters]\nmax_rank = 64")
    monkeypatch.chdir(tmp_path)
    assert load(environ={}).adapters.max_rank == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nport = 99999", r"server\.port = 99999: not allowed; it must be a whole number >= 0 and <= 65535"),
        ("[server]\nport = 'x'", r"server\.port = 'x': not allowed; it must be a whole number"),
        ("[server]\nprot = 1", r"server\.prot: unknown key; allowed here: host, port.*\(in .*lorikeet\.toml\)"),
        ("[sever]\nport = 1", r"^sever: unknown key; allowed here: data_dir"),
        (
            "[runtime]\ndtype = 'int8'",
            r"runtime\.dtype = 'int8': not allowed; it must be one of 'auto', 'float32', 'bfloat16'",
        ),
        ("[runtime]\nkv_bytes = 0", r"runtime\.kv_bytes = 0: not allowed; it must be a whole number >= 1"),
        (
            "[runtime]\nmemory = 1",
            r"runtime\.memory = 1: .* 'auto', or a number > 0 and <= 1, or a whole number >= 1048576",
        ),
        ("[models.'@cf/a/b']\npath = '/w'\nmemory = 1.5", r"models\.@cf/a/b\.memory = 1\.5: not allowed"),
        ("[models.'@cf/a/b']\npath = '/w'\ntoken = 7", r"models\.@cf/a/b\.token = \*\*\*: not allowed"),
        ("[runtime]\ntoken = 7", r"runtime\.token = \*\*\*: not allowed"),
        ("[telemetry]\nsample_ratio = 2.0", r"telemetry\.sample_ratio = 2\.0: .* a number >= 0 and <= 1"),
        ("[server]\nrequest_timeout_s = inf", r"request_timeout_s = inf: .* a number > 0 and <= 1000000000"),
        ("[tiers]\nnegative_ttl_s = inf", r"negative_ttl_s = inf: .* a number >= 0 and <= 1000000000"),
        ("demo_model = 'yes'", r"demo_model = 'yes': not allowed; it must be true or false"),
        ("server = 3", r"server = 3: not allowed; it must be a section"),
        ("[models.'@cf/a/b']\npaht = '/w'", r"models\.@cf/a/b.*paht|models\.@cf/a/b.*path"),
        (
            "[models.'@cf/a/b']\npath = '/w'\ntool_format = 'xml'",
            r"tool_format = 'xml': not allowed; it must be one of 'llama3', 'mistral', 'hermes', 'none'",
        ),
        ("[models.'@cf/a/b']\npath = 3", r"models\.@cf/a/b\.path = 3: not allowed; it must be a text"),
        ("[storage]\nsecret_access_key = 3", r"secret_access_key = \*\*\*: not allowed"),
        ("not toml", r"not valid TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(_write(tmp_path, text), {})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LORIKEET_SERVER__PORT", "http", r"server\.port = 'http'.*\(in LORIKEET_SERVER__PORT\)"),
        ("LORIKEET_NOPE", "1", r"nope: unknown key.*\(in LORIKEET_NOPE\)"),
        ("LORIKEET_SRVER__PORT", "1", r"srver: unknown key.*\(in LORIKEET_SRVER__PORT\)"),
        ("LORIKEET_DATA_DIR__X", "1", r"LORIKEET_DATA_DIR__X: data_dir is a value, not a section|data_dir = "),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load(_write(tmp_path, "data_dir = 'd'"), {name: value})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml: cannot be read .*--config"):
        load(tmp_path / "absent.toml", {})


def test_children_do_not_inherit_what_may_be_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORIKEET_STORAGE__SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("PATH_OF_OTHERS", "kept")
    environ = inherited_environ()
    assert "s3cret" not in environ.values()
    assert environ["PATH_OF_OTHERS"] == "kept"
