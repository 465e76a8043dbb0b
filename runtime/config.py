"""Everything a runtime process is told, as plain values. The supervisor writes it as one line of JSON to the
process's standard input (secrets never stand in argv); `runtime/process.py` reads it. No torch: the gateway imports
this file to build the record.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from runtime.errors import ConfigInvalid
from storage.ledger import GIANTS_SHARE
from storage.policies import PolicyName

Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]

_SECRET = frozenset({"token", "secret_access_key"})


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One runtime: one base model on one device.

    model: catalogue name, for `ModelInfo`. model_folder: Hugging Face layout.
    dtype: of weights, cache and adapters; "auto" is what the model's files have. On a CPU all computing is in float32,
    and with "float32" the weights stay what the files have.
    threads: on a CPU, 0 for one a core. kv_bytes: key/value cache; 0, for a card only: what `card_memory`
    (bytes, or a share of what is free on the card) leaves. adapter_rows: device pool in rank rows.
    step_tokens: new tokens per step, decode and prefill together. copy_bytes: adapter bytes written per step while
    sequences run, so that a load never holds up a step for long. prefix_cache: an account's sequences share the
    blocks of equal beginnings. starve_after_s: how long an adapter may find all rows referenced before rows are drained
    for it.
    socket_path, or host and port: where to listen. `token` is the shared secret; a TCP listener must have one.
    tier_*: of the adapter tiers, see `storage.tiers`; several runtimes may share a `tier_dir`. tier_ranges: parts of
    one download at once, from a bucket. tier_refill: memory is filled again after a start.
    max_outgoing_bytes: unread output at which a gateway is cut off. drain_s: time for running sequences at SIGTERM.
    max_step_s: a step that lasts longer is hung, and the process ends to be replaced.
    """

    model: str
    model_folder: str
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    kv_bytes: Annotated[int, Meta(ge=0)] = 256 * 1024**2
    card_memory: Annotated[float, Meta(gt=0, le=1)] | Positive = 0.9
    block_tokens: Annotated[int, Meta(ge=1, le=256)] = 16
    adapter_rows: Annotated[int, Meta(ge=1, le=65536)] = 512
    max_running: Annotated[int, Meta(ge=1, le=1024)] = 64
    max_waiting: Annotated[int, Meta(ge=1, le=100_000)] = 256
    step_tokens: Annotated[int, Meta(ge=16, le=65536)] = 1024
    copy_bytes: Positive = 16 * 1024**2
    starve_after_s: Seconds = 2.0
    prefix_cache: bool = True

    socket_path: str = ""
    host: str = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    token: str = ""
    max_connections: Positive = 64
    max_outgoing_bytes: Positive = 8 * 1024**2
    drain_s: Annotated[float, Meta(ge=0)] = 10.0
    max_step_s: Seconds = 120.0

    objects: Literal["local", "s3"] = "local"
    objects_root: str = ""
    bucket: str = ""
    endpoint: str = ""
    region: str = "auto"
    access_key_id: str = ""
    secret_access_key: str = ""

    tier_dir: str
    tier_memory_bytes: Positive = 2 * 1024**3
    tier_disk_bytes: Positive = 20 * 1024**3
    tier_memory_policy: PolicyName = "lru"
    tier_disk_policy: PolicyName = "lru"
    tier_giants_share: Annotated[float, Meta(gt=0, le=1)] = GIANTS_SHARE
    tier_negative_ttl_s: Annotated[float, Meta(ge=0)] = 5.0
    tier_ranges: Annotated[int, Meta(ge=1, le=16)] = 4
    tier_refill: bool = True

    otlp_endpoint: str = ""
    sample_ratio: Annotated[float, Meta(ge=0, le=1)] = 1.0

    def __repr__(self) -> str:
        """Never shows a secret, wherever the record is printed."""
        fields = (
            f"{name}={'***' if name in _SECRET and getattr(self, name) else repr(getattr(self, name))}"
            for name in self.__struct_fields__
        )
        return f"RuntimeConfig({', '.join(fields)})"

    def check(self) -> "RuntimeConfig":
        """Returns itself; raises ConfigInvalid when values contradict each other."""
        if self.kv_bytes == 0 and self.device == "cpu":
            raise ConfigInvalid("kv_bytes = 0: only a card says by itself how much it has; give the bytes")
        if bool(self.socket_path) == bool(self.host):
            raise ConfigInvalid("give either socket_path or host, not both or neither")
        if self.host and not self.token:
            raise ConfigInvalid(f"host = {self.host!r}: a TCP listener needs a token")
        if self.objects == "local" and not self.objects_root:
            raise ConfigInvalid("objects = 'local': objects_root is missing")
        if self.objects == "s3" and not self.bucket:
            raise ConfigInvalid("objects = 's3': bucket is missing")
        return self

    def to_json(self) -> bytes:
        """One line, secrets included; for a private pipe or a file with mode 0600."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, text: bytes) -> "RuntimeConfig":
        """Parses and checks. Raises ConfigInvalid; the message never repeats a value of the input."""
        try:
            config = msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ConfigInvalid(f"runtime configuration: {error}") from error
        return config.check()
