"""The composition: what wraps every answer, how failures look, and that parts open and close in order."""

import logging
from pathlib import Path
from typing import Any

import pytest

from gateway.app import build_app
from gateway.backends.fake import FakeBackend
from gateway.settings import DEMO_MODEL, Model, Settings, SettingsError
from storage.errors import DatabaseUnavailable, StorageError
from tests.gateway.stack import CHAT, RUN, Stack, open_stack, serve


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nope",
        "/client/v4",
        "/client/v4/accounts",
        "/healthz/x",
        "//healthz",
        "/HEALTHZ",
        "/client/v4/accounts/a/ai/runs",
        "/client/v4/accounts/a/ai/runs/",
        "/healthz/x/",
    ],
)
async def test_unknown_routes(stack: Stack, path: str) -> None:
    answer = await stack.client.get("http://lorikeet.test" + path, headers={"authorization": ""})
    if path == "/client/v4/accounts":
        assert answer.status_code == 401
        return
    assert answer.status_code == 404
    assert answer.json() == {
        "success": False,
        "errors": [{"code": 7000, "message": "No route for that URI"}],
        "messages": [],
        "result": None,
    }


async def test_openai_routes_say_it_in_both_ways(stack: Stack) -> None:
    for path, method in ((stack.url("/ai/v1/nope"), "GET"), (stack.url(CHAT), "GET"), (stack.url(CHAT), "POST")):
        answer = await stack.client.request(method, path)
        body = answer.json()
        assert body["error"]["message"] == body["errors"][0]["message"]
        assert body["error"]["code"] == str(body["errors"][0]["code"])
    unauthorized = await stack.client.post(stack.url(CHAT), headers={"authorization": ""})
    assert unauthorized.json()["error"]["message"] == "Authentication error"
    assert "error" not in (await stack.client.get(stack.url(RUN))).json()


async def test_every_answer_has_an_id_of_its_own(stack: Stack) -> None:
    ids = {(await stack.client.get(path)).headers["x-request-id"] for path in ("/healthz", "/nope", stack.url(RUN))}
    assert len(ids) == 3
    sent = await stack.client.get("/healthz", headers={"x-request-id": "mine"})
    assert sent.headers["x-request-id"] != "mine"


async def test_a_bug_says_nothing_about_the_inside(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("secret inside")

    stack.services.accounts.authenticate = broken  # type: ignore[method-assign, assignment]
    answer = await stack.client.get(stack.url("/ai/v1/models"))
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (500, 7500)
    assert "secret" not in answer.text
    request_id = answer.headers["x-request-id"]
    assert request_id in answer.text
    assert any(request_id in record.getMessage() and record.exc_info for record in caplog.records)
    assert (await stack.client.get("/healthz")).status_code == 200


async def test_a_bug_inside_an_inference_is_logged_as_an_exchange(tmp_path: Path) -> None:
    def broken(_: Any) -> Any:
        raise RuntimeError("secret inside")

    async with open_stack(tmp_path, FakeBackend(broken)) as stack:
        answer = await stack.post(RUN, {"prompt": "x"})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (500, 7500)
        assert "secret" not in answer.text
        assert answer.headers["cf-aig-log-id"] == stack.records.seen[0].id
        assert (stack.records.seen[0].status_code, stack.records.seen[0].error_code) == (500, 7500)


async def test_storage_that_fails_is_a_503(stack: Stack, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(*_: Any) -> Any:
        raise DatabaseUnavailable("disk /dev/sda1 is on fire")

    caplog.set_level(logging.CRITICAL)
    stack.services.accounts.authenticate = broken  # type: ignore[method-assign, assignment]
    answer = await stack.post(RUN, {"prompt": "x"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7011)
    assert int(answer.headers["retry-after"]) >= 1
    assert "sda1" not in answer.text


async def test_storage_that_fails_while_a_lora_is_resolved(stack: Stack) -> None:
    async def broken(*_: Any) -> Any:
        raise DatabaseUnavailable("disk /dev/sda1 is on fire")

    stack.services.finetunes.resolve = broken  # type: ignore[method-assign, assignment]
    answer = await stack.post(RUN, {"prompt": "x", "lora": "y"})
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7011)
    assert "cf-aig-log-id" in answer.headers


async def test_health(tmp_path: Path) -> None:
    fake = FakeBackend(problem="the runtime is loading the model")
    async with open_stack(tmp_path, fake) as stack:
        alive = await stack.client.get("/healthz", headers={"authorization": ""})
        assert (alive.status_code, alive.json()) == (200, {"status": "ok"})
        assert alive.headers["cache-control"] == "no-cache"
        not_yet = await stack.client.get("/readyz", headers={"authorization": ""})
        assert not_yet.status_code == 503
        assert not_yet.json()["missing"] == [f"{DEMO_MODEL}: the runtime is loading the model"]
        fake.problem = None
        assert (await stack.client.get("/readyz")).status_code == 200
        await stack.services.database.aclose()
        gone = await stack.client.get("/readyz")
        assert gone.status_code == 503
        assert "database" in gone.json()["missing"][0]


async def test_a_request_for_a_model_without_runtime(tmp_path: Path) -> None:
    async with open_stack(tmp_path, backends={"@cf/another/model": FakeBackend()}) as stack:
        answer = await stack.post(RUN, {"prompt": "x"})
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, 7010)
        assert int(answer.headers["retry-after"]) >= 1


async def test_head_and_options_over_a_socket(stack: Stack) -> None:
    import httpx

    async with serve(stack.app) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.head("/healthz")).status_code == 200
        assert (await client.options("/healthz")).status_code == 405
        assert (await client.get("/healthz/")).status_code == 200


async def test_what_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for settings, error in (
        (Settings(data_dir=str(tmp_path / "file")), SettingsError),
        (Settings(data_dir=str(tmp_path / "a"), models={"@cf/a/b": Model(str(tmp_path / "none"))}), SettingsError),
    ):
        app = build_app(settings, runtime_sockets={}, runtime_token="")
        with pytest.raises(error):
            async with app.router.lifespan_context(app):
                pass


async def test_two_processes_cannot_share_a_data_folder(stack: Stack, tmp_path: Path) -> None:
    app = build_app(stack.services.settings, runtime_sockets={}, runtime_token="", backends={})
    with pytest.raises(StorageError):
        async with app.router.lifespan_context(app):
            pass
    assert (await stack.post(RUN, {"prompt": "x"})).status_code == 200


async def test_a_folder_can_be_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        app = build_app(Settings(data_dir=str(tmp_path / "data")), runtime_sockets={}, runtime_token="", backends={})
        async with app.router.lifespan_context(app):
            assert len(await app.state.services.accounts.list_accounts()) == 0
