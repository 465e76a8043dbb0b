"""Commands that talk to a running gateway use its public HTTP API, like any client; the operator's public adapters are
reached by the same calls on the admin socket, which is its own proof of who calls.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any, Final

import httpx
import typer

from gateway.commands.options import CommandFailed, settings_of
from gateway.data_dir import DataDir as DataFolder
from gateway.settings import Client

TIMEOUT_S: Final = 120.0

Url = Annotated[str | None, typer.Option("--url", help="Address of the gateway (or LORIKEET_CLIENT__URL).")]
AccountId = Annotated[str | None, typer.Option("--account", help="Account id (or LORIKEET_CLIENT__ACCOUNT).")]
Public = Annotated[
    bool, typer.Option("--public", help="The operator's public adapters (cf-public-...): needs the data folder.")
]
Token = Annotated[str | None, typer.Option("--token", help="API token (or LORIKEET_CLIENT__TOKEN).")]


class Api:
    """Calls below one account. Every failure is a CommandFailed with the server's own sentence."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    @classmethod
    def of_account(cls, client: Client, url: str | None, account: str | None, token: str | None) -> "Api":
        """As an account's token allows."""
        chosen = {"url": url or client.url, "account": account or client.account, "token": token or client.token}
        for name, value in chosen.items():
            if not value:
                raise CommandFailed(f"no {name}: give --{name} or set LORIKEET_CLIENT__{name.upper()}", 2)
        return cls(
            httpx.Client(
                base_url=f"{chosen['url'].rstrip('/')}/client/v4/accounts/{chosen['account']}",
                headers={"Authorization": f"Bearer {chosen['token']}"},
                timeout=TIMEOUT_S,
            )
        )

    @classmethod
    def of_operator(cls, data_dir: Path, root: str) -> "Api":
        """Below `root` of the admin socket of a gateway that runs on this data folder."""
        transport = httpx.HTTPTransport(uds=str(DataFolder(data_dir).admin_socket))
        return cls(httpx.Client(transport=transport, base_url=f"http://admin{root}", timeout=TIMEOUT_S))

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The reply of a call that succeeded."""
        with self._errors():
            reply = self._http.request(method, path, **options)
            _check(reply)
            return reply

    def copy(self, path: str, params: dict[str, str | int], file: IO[bytes]) -> int:
        """Writes the body of a GET to `file` as it comes; returns the number of its lines."""
        lines = 0
        with self._errors(), self._http.stream("GET", path, params=params) as reply:
            if not reply.is_success:
                reply.read()
            _check(reply)
            for piece in reply.iter_bytes():
                file.write(piece)
                lines += piece.count(b"\n")
        return lines

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise CommandFailed(f"--url must look like http://127.0.0.1:8787: {error}", 2) from error
        except httpx.HTTPError as error:
            raise CommandFailed(f"{self._http.base_url}: {error}; is `lorikeet serve` running?") from error

    def result(self, method: str, path: str, **options: Any) -> Any:
        """`result` of the v4 envelope."""
        return self.call(method, path, **options).json()["result"]


@contextlib.contextmanager
def open_api(
    config: Path | None, data_dir: Path | None, url: str | None, account: str | None, token: str | None, public: bool
) -> Iterator[Api]:
    """The account's calls, or with `public` the operator's on the public adapters."""
    settings = settings_of(config, data_dir)
    if public:
        api = Api.of_operator(Path(settings.data_dir), "/public")
    else:
        api = Api.of_account(settings.client, url, account, token)
    try:
        yield api
    finally:
        api.close()


def _check(reply: httpx.Response) -> None:
    if reply.is_success:
        return
    try:
        errors = reply.json()["errors"]
        text = "; ".join(f"{error['message']} [code: {error['code']}]" for error in errors)
    except (ValueError, KeyError, TypeError):
        text = reply.text[:500]
    hint = "; check --token and --account" if reply.status_code in (401, 403) else ""
    raise CommandFailed(f"{reply.request.method} {reply.request.url.path}: HTTP {reply.status_code}: {text}{hint}")
