"""What a gateway process is told by its parent, as one line on standard input."""

import msgspec

from gateway.settings import Settings


class GatewayConfig(msgspec.Struct, frozen=True):
    """Settings, the inherited listening socket, and where each model's runtime and each encoder listens."""

    settings: Settings
    listen_fd: int
    runtimes: dict[str, str]
    runtime_token: str
    encoders: dict[str, str] = {}
