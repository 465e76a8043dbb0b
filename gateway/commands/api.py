"""Commands that talk to a running gateway use its public HTTP API, like any client."""

from typing import Annotated, Any

import httpx
import typer

from gateway.commands.options import CommandFailed
from gateway.settings import Client

Url = Annotated[str | None, typer.Option("--url", help="Address of the gateway (or LORIKEET_CLIENT__URL).")]
AccountId = Annotated[str | None, typer.Option("--account", help="Account id (or LORIKEET_CLIENT__ACCOUNT).")]
Token = Annotated[str | None, typer.Option("--token", help="API token (or LORIKEET_CLIENT__TOKEN).")]


class Api:
    """Calls below one account. Every failure is a CommandFailed with the server's own sentence."""

    def __init__(self, client: Client, url: str | None, account: str | None, token: str | None) -> None:
        chosen = {"url": url or client.url, "account": account or client.account, "token": token or client.token}
        for name, value in chosen.items():
            if not value:
                raise CommandFailed(f"no {name}: give --{name} or set LORIKEET_CLIENT__{name.upper()}", 2)
        self._http = httpx.Client(
            base_url=f"{chosen['url'].rstrip('/')}/client/v4/accounts/{chosen['account']}",
            headers={"Authorization": f"Bearer {chosen['token']}"},
            timeout=120.0,
        )

    def call(self, method: str, path: str, **options: Any) -> httpx.Response:
        """The reply of a call that succeeded."""
        try:
            reply = self._http.request(method, path, **options)
        except httpx.HTTPError as error:
            raise CommandFailed(f"{self._http.base_url}: {error}; is `lorikeet serve` running?") from error
        if reply.is_success:
            return reply
        try:
            errors = reply.json()["errors"]
            text = "; ".join(f"{error['message']} [code: {error['code']}]" for error in errors)
        except (ValueError, KeyError, TypeError):
            text = reply.text[:500]
        raise CommandFailed(f"{method} {path}: HTTP {reply.status_code}: {text}")

    def result(self, method: str, path: str, **options: Any) -> Any:
        """`result` of the v4 envelope."""
        return self.call(method, path, **options).json()["result"]
