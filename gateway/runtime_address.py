"""Where a runtime listens: `unix:/absolute/path.sock` or `tcp://host:port`, and the models whose runtimes somebody else
runs, with the secret that they ask for.

A Unix socket is its user's alone (mode 0600), so it may do without a secret; over TCP one is needed. It travels in
clear and so do prompts: TCP is for a private network.
"""

from typing import Final, NamedTuple
from urllib.parse import urlsplit

from gateway.catalog import ALIASES
from gateway.settings import Settings, SettingsError

LEAST_TOKEN_CHARS: Final = 16


class RuntimeAddress(NamedTuple):
    """Either `socket_path` or `host` is set."""

    socket_path: str = ""
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> "RuntimeAddress":
        """Raises ValueError that says what is allowed."""
        if text.startswith("unix:/"):
            return cls(socket_path=text.removeprefix("unix:"))
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme != "tcp" or not parts.hostname or port is None or text != f"tcp://{parts.netloc}":
            raise ValueError(
                f'{text!r} is no address of a runtime; use "unix:/absolute/path.sock" or "tcp://host:port"'
            )
        if "@" in parts.netloc:
            raise ValueError("an address of a runtime holds no user or password; the secret is runtime.token")
        return cls(host=parts.hostname, port=port)

    def __str__(self) -> str:
        """As in the settings."""
        if self.socket_path:
            return f"unix:{self.socket_path}"
        return f"tcp://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class RemoteRuntime(NamedTuple):
    """A runtime that this deployment uses and does not start."""

    address: RuntimeAddress
    token: str

    def __repr__(self) -> str:
        """Never shows the secret."""
        return f"RemoteRuntime({self.address})"


def remote_runtimes(settings: Settings) -> dict[str, RemoteRuntime]:
    """By catalogue name. Raises SettingsError for an address or a secret that cannot be used."""
    found = {}
    for name, model in settings.models.items():
        if not model.address:
            continue
        try:
            address = RuntimeAddress.parse(model.address)
        except ValueError as error:
            raise SettingsError(f'models."{name}".address: {error}') from error
        if address.host and not address.port:
            raise SettingsError(f'models."{name}".address = {model.address!r}: the port is missing')
        token = model.token or settings.runtime.token
        check_token(address, token)
        found[ALIASES.get(name, name)] = RemoteRuntime(address, token)
    return found


def check_token(address: RuntimeAddress, token: str) -> None:
    """Raises SettingsError when a listener on a network would be open to anybody."""
    if address.host and len(token) < LEAST_TOKEN_CHARS:
        raise SettingsError(
            f"{address}: over TCP gateways and runtimes need a shared secret of at least {LEAST_TOKEN_CHARS} "
            "characters; set runtime.token, for example by LORIKEET_RUNTIME__TOKEN"
        )
