"""Settings: `lorikeet.toml`, overridden by `LORIKEET_*`, checked once at start. The only reader of the environment.

`LORIKEET_SECTION__FIELD=value` sets `[section] field`; values are parsed as TOML, else taken as text. An unknown key
or a bad value raises `SettingsError` with the key, the value and what is allowed. Parts get values or one section,
never the whole record.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from storage.policies import PolicyName

ENV_PREFIX = "LORIKEET_"
DEMO_MODEL = "@cf/lorikeet/demo-lora"

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
# Thirty years are as good as for ever, and finite: the children get the settings as JSON, which has no infinity.
Seconds = Annotated[float, Meta(gt=0, le=1_000_000_000)]
Share = Annotated[float, Meta(gt=0, le=1)]
Memory = Literal["auto"] | Share | Annotated[int, Meta(ge=1024**2)]


_LIMITS = {
    "launch": {"max_rank": 8, "max_bytes": 100 * 1000**2, "max_per_account": 30},
    "today": {"max_rank": 32, "max_bytes": 300 * 1000**2, "max_per_account": 100},
    "free": {"max_rank": 512, "max_bytes": 10 * 1000**3, "max_per_account": 100_000},
}


class SettingsError(Exception):
    """The settings cannot be used; the text names key, value and what is allowed."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: immutable, unknown keys refused."""


class Server(_Section, frozen=True):
    """`port` 0 takes a free one. `request_timeout_s` is the deadline of one inference.

    `max_body_bytes` bounds one request's body, `body_buffer_bytes` all bodies that are in memory together.
    `stream_gap_ms`: tokens of one answer that come nearer to each other than this may leave together, the sooner the
    fewer answers are under way; 0 sends each by itself.
    """

    host: str = "127.0.0.1"
    port: Port = 8787
    request_timeout_s: Seconds = 120.0
    max_body_bytes: Positive = 10 * 1024 * 1024
    body_buffer_bytes: Positive = 256 * 1024 * 1024
    drain_s: Seconds = 10.0
    stream_gap_ms: Annotated[float, Meta(ge=0, le=1000)] = 10.0


class Storage(_Section, frozen=True):
    """Where objects live. `s3` works with any S3 API; Cloudflare R2 is an endpoint with region = "auto".

    `path`: the folder of local objects, for gateways and runtimes that share one; default: in the data folder.
    """

    objects: Literal["local", "s3"] = "local"
    path: str = ""
    bucket: str = ""
    endpoint: str = ""
    region: str = "auto"
    access_key_id: str = ""
    secret_access_key: str = ""


class Tiers(_Section, frozen=True):
    """Byte budgets of the adapter tiers in front of the object store, for each runtime, and who goes when one is full.

    `memory_bytes`, unless set: 2 GiB, or less on a small machine, where all together take an eighth of its memory.
    `path`: one disk folder for all runtimes of this machine, which then share `disk_bytes`; default: one each in the
    data folder. `giants_share`: what adapters above a sixteenth of a budget may take of it together when it is full.
    `negative_ttl_s`: how long it is remembered that an object is missing or damaged. `refill`: after a restart memory
    is filled with what was used last. `warm_up`: finetunes that are brought to memory at every start of a runtime, as
    "account id/name", finetune id or "cf-public-..."; `warm_up_recent`: so many more, those used last.
    """

    memory_bytes: Positive | None = None
    disk_bytes: Positive = 20 * 1024**3
    memory_policy: PolicyName = "gdsf"
    disk_policy: PolicyName = "gdsf"
    path: str = ""
    giants_share: Share = 0.25
    negative_ttl_s: Annotated[float, Meta(ge=0, le=1_000_000_000)] = 5.0
    refill: bool = True
    warm_up: tuple[str, ...] = ()
    warm_up_recent: Annotated[int, Meta(ge=0, le=10_000)] = 0


class Adapters(_Section, frozen=True):
    """What an upload may be. `limits`: those of Workers AI at its "launch" in 2024 (rank 8, 100 MB, 30 per account),
    "today"'s (32, 300 MB, 100), or "free" (512, 10 GB, 100,000). A number of one's own goes before that of the preset;
    0 is the preset's. `kept_versions`: ready versions of one finetune, the current one included, before the oldest go.
    """

    limits: Literal["launch", "today", "free"] = "launch"
    max_rank: Annotated[int, Meta(ge=0, le=512)] = 0
    max_bytes: Annotated[int, Meta(ge=0)] = 0
    max_per_account: Annotated[int, Meta(ge=0)] = 0
    kept_versions: Annotated[int, Meta(ge=2, le=1000)] = 5

    def __post_init__(self) -> None:
        for name, value in _LIMITS[self.limits].items():
            msgspec.structs.force_setattr(self, name, getattr(self, name) or value)


class Runtime(_Section, frozen=True):
    """One runtime process per base. `adapter_rows` is the device pool in rank rows, shared by all resident adapters.

    `memory`: the budget of each runtime, in bytes (a whole number) or as a share of the machine's or the card's memory
    (0.5). What weights, adapter pool and working memory leave of it holds keys and values. "auto": all such runtimes
    together take at most 0.7 of the machine (0.9 of the card), and none more than it can use. `kv_bytes`: exactly so
    much for keys and values instead. `token`: the secret between gateways and runtimes of models with an `address`.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    memory: Memory = "auto"
    kv_bytes: Positive | None = None
    block_tokens: Annotated[int, Meta(ge=1, le=256)] = 16
    adapter_rows: Annotated[int, Meta(ge=1, le=65536)] = 512
    max_running: Annotated[int, Meta(ge=1, le=1024)] = 64
    max_waiting: Annotated[int, Meta(ge=1, le=100_000)] = 256
    step_tokens: Annotated[int, Meta(ge=16, le=65536)] = 1024
    prefix_cache: bool = True
    token: str = ""
    restart_wait_s: Seconds = 10.0


class Model(_Section, frozen=True):
    """A base of the catalogue that this deployment serves: the folder of its weights (Hugging Face layout).

    `address`, "unix:/run/base.sock" or "tcp://host:port": its runtime is not started here; `lorikeet runtime` serves it
    there, also to other gateways, and only the files beside the weights are needed here. `memory`, `token`: as
    `runtime.memory` and `runtime.token`, for this base. `tool_format`: how it calls functions, where its chat template
    does not tell; "none" for not at all.
    """

    path: str
    address: str = ""
    token: str = ""
    memory: Memory | None = None
    tool_format: Literal["llama3", "mistral", "hermes", "none"] | None = None


class Encoder(_Section, frozen=True):
    """An encoder that this deployment serves: the folder of a BERT, RoBERTa or XLM-RoBERTa with its tokenizer.

    `task` and `pooling`: those of the name unless said: built-in names have them.
    """

    path: str
    task: Literal["embed", "rank"] | None = None
    pooling: Literal["mean", "cls"] | None = None


class Logs(_Section, frozen=True):
    """`ack`: the last byte of an answer leaves after its record is on disk. `group`: within `group_ms` of it."""

    durability: Literal["ack", "group"] = "ack"
    group_ms: Annotated[int, Meta(ge=1, le=1000)] = 5
    segment_bytes: Annotated[int, Meta(ge=4096)] = 64 * 1024**2
    buffer_bytes: Annotated[int, Meta(ge=1024**2)] = 64 * 1024**2


class Telemetry(_Section, frozen=True):
    """Traces are exported by OTLP over HTTP when `otlp_endpoint` is set, for example "http://127.0.0.1:4318"."""

    otlp_endpoint: str = ""
    sample_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0


class Client(_Section, frozen=True):
    """What the command line uses to call a running gateway; the server itself ignores it."""

    url: str = "http://127.0.0.1:8787"
    account: str = ""
    token: str = ""


class Settings(_Section, frozen=True):
    """The whole file. `models` maps a catalogue name to its folder, `encoders` likewise; `demo_model` serves the demo
    base too.
    """

    data_dir: str = "lorikeet-data"
    demo_model: bool = True
    server: Server = Server()
    storage: Storage = Storage()
    tiers: Tiers = Tiers()
    adapters: Adapters = Adapters()
    runtime: Runtime = Runtime()
    models: dict[str, Model] = {}
    encoders: dict[str, Encoder] = {}
    logs: Logs = Logs()
    telemetry: Telemetry = Telemetry()
    client: Client = Client()


def adapter_limits(settings: Settings) -> Adapters:
    """What an upload may be here: the limits, and nothing that the device pool or a memory tier of that size can never
    hold, for it would only be refused when it is used.
    """
    rank = min(settings.adapters.max_rank, settings.runtime.adapter_rows)
    size = min(settings.adapters.max_bytes, settings.tiers.memory_bytes or settings.adapters.max_bytes)
    return msgspec.structs.replace(settings.adapters, max_rank=rank, max_bytes=size)


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """Reads `path` (default: `LORIKEET_CONFIG`, else ./lorikeet.toml if it exists) and the environment.

    Raises SettingsError.
    """
    env = os.environ if environ is None else environ
    chosen = path or (Path(env[ENV_PREFIX + "CONFIG"]) if ENV_PREFIX + "CONFIG" in env else None)
    tree: dict[str, Any] = {}
    file = chosen or Path("lorikeet.toml")
    if chosen is not None or file.exists():
        tree = _read(file)
    variables = sorted(name for name in env if name.startswith(ENV_PREFIX) and name != ENV_PREFIX + "CONFIG")
    for name in variables:
        _put(tree, name, env[name])
    try:
        return msgspec.convert(tree, Settings, strict=True)
    except msgspec.ValidationError as error:
        key, text = _explain(tree, str(error))
        stem = ENV_PREFIX + key.upper().replace(".", "__")
        sources = [name for name in variables if name == stem or name.startswith(stem + "__")]  # a section, by a field
        raise SettingsError(f"{text} (in {', '.join(sources) or file})") from error


def inherited_environ() -> dict[str, str]:
    """The environment for a child process, without our settings: some of them are secrets, and it is told them by
    other means."""
    return {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); give another file with --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error


def _put(tree: dict[str, Any], name: str, text: str) -> None:
    keys = name.removeprefix(ENV_PREFIX).lower().split("__")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    node = tree
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise SettingsError(f"{name}: {key} is a value, not a section")
    node[keys[-1]] = value


def _explain(tree: dict[str, Any], text: str) -> tuple[str, str]:
    """The dotted key, and a sentence: msgspec says what is wrong and where; add the value and what would be right."""
    reason, _, place = text.partition(" - at `$")
    keys = [key.strip("`") for key in place.replace("[...]", ".*").split(".") if key.strip("`")]
    value: Any = tree
    kind: Any = Settings
    for index, key in enumerate(keys):
        if key == "*":  # msgspec does not say which entry of a dictionary: find it by its being wrong
            key = keys[index] = _wrong_entry(value, kind.__args__[1])
        value = value.get(key) if isinstance(value, dict) else None
        kind = kind.__args__[1] if get_origin(kind) is dict else get_type_hints(kind, include_extras=True)[key]
    if "unknown field" in reason:
        wrong = reason.partition("unknown field ")[2].strip("`")
        key = ".".join([*keys, wrong])
        return key, f"{key}: unknown key; allowed here: {', '.join(kind.__struct_fields__)}"
    shown = "***" if keys and ("secret" in keys[-1] or "token" in keys[-1]) else repr(value)
    key = ".".join(keys) or "settings"
    if "missing required field" in reason:
        return key, f"{key}: {reason[:1].lower()}{reason[1:]}"
    return key, f"{key} = {shown}: not allowed; it must be {_allowed(kind)}"


def _wrong_entry(entries: dict[str, Any], kind: Any) -> str:
    for key, entry in entries.items():
        try:
            msgspec.convert(entry, kind, strict=True)
        except msgspec.ValidationError:
            return key
    return "?"


def _allowed(kind: Any) -> str:
    """In words: what a field of this type takes."""
    if get_origin(kind) in (Union, UnionType):
        return ", or ".join(_allowed(choice) for choice in get_args(kind) if choice is not NoneType)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in get_args(kind))
    if get_origin(kind) is Annotated:
        meta = kind.__metadata__[0]
        bounds = [(meta.ge, ">="), (meta.gt, ">"), (meta.le, "<="), (meta.lt, "<")]
        limits = " and ".join(f"{sign} {bound}" for bound, sign in bounds if bound is not None)
        return f"{_allowed(kind.__origin__)} {limits}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind, "a section")
