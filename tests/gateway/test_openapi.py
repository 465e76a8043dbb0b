"""`GET /openapi.json`: every route is in it, its schemas are sound, its examples work, and replies match it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import msgspec
import pytest
import pytest_asyncio
from starlette.requests import Request
from starlette.responses import Response

from gateway.app import ROWS
from gateway.openapi.document import document
from gateway.openapi.schema import Schemas
from gateway.routes import ApiRoute, PublicRoute
from gateway.services import Services
from gateway.settings import DEMO_MODEL
from gateway.wire import workers_ai
from gateway.wire.body import Body, read_bounds
from tests.gateway.stack import Stack, open_stack

pytestmark = pytest.mark.asyncio(loop_scope="module")
DOCUMENT = document(ROWS, "0")
CALLS = {
    f"{method.upper()} {path}": (method, path, call)
    for path, calls in DOCUMENT["paths"].items()
    for method, call in calls.items()
}
# Ours, not the original's: what issue and contract call so.
ADDITIONS = (
    "versions",
    "aliases",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/export",
    "/ai/v1/models",
    "/count_tokens",
    "/v1/completions",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with open_stack(tmp_path_factory.mktemp("stack")) as opened:
        yield opened


def check(schema: Any, value: Any) -> None:
    """Raises jsonschema.ValidationError."""
    whole = {**schema, "components": DOCUMENT["components"]}
    jsonschema.Draft202012Validator(whole).validate(value)


def schemas_in(node: Any) -> list[Any]:
    if isinstance(node, list):
        return [found for item in node for found in schemas_in(item)]
    if not isinstance(node, dict):
        return []
    own = [node["schema"]] if isinstance(node.get("schema"), dict) else []
    return own + [found for item in node.values() for found in schemas_in(item)]


async def test_it_is_served_to_everybody(stack: Stack) -> None:
    answer = await stack.client.get("/openapi.json", headers={"authorization": ""})
    assert answer.status_code == 200
    served = answer.json()
    assert served["paths"] == json.loads(json.dumps(DOCUMENT["paths"]))
    assert served["info"]["version"] != "0"


async def test_every_row_is_there_with_its_permission() -> None:
    told = {
        (method.upper(), path): call.get("x-permission")
        for path, calls in DOCUMENT["paths"].items() for method, call in calls.items()
    }  # fmt: skip
    rows = {
        (row.method, row.path.replace(":path", "").rstrip("/")): row.permission if isinstance(row, ApiRoute) else None
        for row in ROWS
    }
    assert told == rows
    names = [call["operationId"] for _, _, call in CALLS.values()]
    assert len(names) == len(set(names))


async def test_a_row_that_nobody_describes_stops_the_start() -> None:
    async def handler(request: Request, services: Services) -> Response:
        raise AssertionError

    with pytest.raises(LookupError, match="does not describe GET /new"):
        document([*ROWS, PublicRoute("GET", "/new", handler)], "0")


async def test_additions_are_marked() -> None:
    for name, (method, path, call) in CALLS.items():
        one = path.endswith("/{finetune}") or (method == "get" and "finetune-assets" in path)
        assert bool(call.get("x-lorikeet-addition")) is (one or any(part in path for part in ADDITIONS)), name


async def test_the_schemas_are_sound() -> None:
    for schema in [*schemas_in(DOCUMENT["paths"]), *DOCUMENT["components"]["schemas"].values()]:
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_every_array_says_what_it_holds() -> None:
    """Makers of clients (openapi-python-client 0.29) leave a whole reply out for one array that does not."""
    silent = []

    def walk(place: str, node: Any) -> None:
        if isinstance(node, dict):
            if "array" in node.get("type", ()) and not {"items", "prefixItems"} & node.keys():
                silent.append(place)
            for name, value in node.items():
                if name not in ("example", "enum", "const"):
                    walk(f"{place}/{name}", value)
        elif isinstance(node, list):
            for index, value in enumerate(node):
                walk(f"{place}/{index}", value)

    walk("", DOCUMENT)
    assert silent == []


@pytest.mark.parametrize("name", [name for name, (_, _, call) in CALLS.items() if "requestBody" in call])
async def test_examples_are_what_the_schema_says(name: str) -> None:
    for media, content in CALLS[name][2]["requestBody"]["content"].items():
        if media == "application/json":
            check(content["schema"], content["example"])


ANSWERING = [
    name for name in CALLS if "/ai/run" in name or ("POST" in name and "/ai/v1/" in name and "embed" not in name)
]
ANSWERING.remove(next(name for name in ANSWERING if "count_tokens" in name))


@pytest.mark.parametrize("name", ANSWERING)
async def test_settings_of_the_query_are_read_as_they_are_described(stack: Stack, name: str) -> None:
    """Each is described where it is read, with the bounds that hold there; those of the body's type, no others."""
    method, path, call = CALLS[name]
    asked = {"json": call["requestBody"]["content"]["application/json"]["example"]}
    url = path.replace("{account_id}", stack.account).replace("{model}", DEMO_MODEL)
    told = {parameter["name"]: parameter["schema"] for parameter in call["parameters"] if parameter["in"] == "query"}
    assert {"lora", "stream", "top_p", "frequency_penalty", "priority"} <= told.keys()
    bounded = {key: schema for key, schema in told.items() if "maximum" in schema}
    assert len(bounded) >= 9
    given = asked["json"].get("input") if isinstance(asked["json"].get("input"), dict) else asked["json"]
    for key, schema in bounded.items():
        if key in given:
            continue  # the body wins
        for value in (schema["maximum"] + 1, schema["minimum"] - 1):
            answer = await stack.client.request(method, url, params={key: str(value)}, **asked)
            assert answer.status_code == 400, (key, value, answer.text)
            assert f"'{key}'" in answer.json()["errors"][0]["message"]
        answer = await stack.client.request(method, url, params={key: str(schema["minimum"])}, **asked)
        assert answer.status_code in (200, 413), (key, answer.text)
    unsure = await stack.client.request(method, url, params={"stream": "maybe"}, **asked)
    assert (unsure.status_code, "'stream'" in unsure.text) == (400, True)


@pytest.mark.parametrize("name", ANSWERING)
@pytest.mark.parametrize("stream", [False, True])
async def test_examples_of_inference_are_answered_as_told(stack: Stack, name: str, stream: bool) -> None:
    method, path, call = CALLS[name]
    example = json.loads(json.dumps(call["requestBody"]["content"]["application/json"]["example"]))
    native = example["input"] if path.endswith("/ai/run") else example
    native["stream"] = stream
    url = path.replace("{account_id}", stack.account).replace("{model}", DEMO_MODEL)
    answer = await stack.client.request(method, url, json=example)
    assert answer.status_code == 200, answer.text
    media = answer.headers["content-type"].partition(";")[0]
    told = call["responses"]["200"]["content"]
    assert media == ("text/event-stream" if stream else "application/json")
    assert media in told
    if not stream:
        check(told[media]["schema"], answer.json())
    assert stack.fake.requests[-1].request.sampling.max_tokens == 64


async def test_refusals_are_as_told(stack: Stack) -> None:
    for path, body in (("/ai/run/" + DEMO_MODEL, {}), ("/ai/v1/chat/completions", {}), ("/ai/run/@cf/x/y", {"a": 1})):
        answer = await stack.post(path, body)
        assert answer.status_code in (400, 404)
        check({"$ref": "#/components/schemas/Refusal"}, answer.json())


async def test_lists_are_as_told(stack: Stack) -> None:
    reads = [(p, c) for m, p, c in CALLS.values() if m == "get" and p.replace("{account_id}", "").count("{") == 0]
    assert len(reads) > 12
    for path, call in reads:
        query = {"model": DEMO_MODEL} if path.endswith("/schema") else {}
        answer = await stack.client.get(path.replace("{account_id}", stack.account), params=query)
        assert answer.status_code == 200, path
        check(call["responses"]["200"]["content"]["application/json"].get("schema", {}), answer.json())


async def test_published_bounds_are_those_that_are_checked() -> None:
    """Just inside passes, just outside is refused, for every number that the native schema shows."""
    shown = Schemas(inline=True).request(Body)["properties"]
    numbers = {
        name: bounds for name, bounds in read_bounds(Body).items() if name not in ("n", "best_of", "top_logprobs")
    }
    assert len(numbers) > 9
    for name, (low, high) in numbers.items():
        assert (shown[name]["minimum"], shown[name]["maximum"]) == (low, high)
        step = 1 if shown[name]["type"] == "integer" else 0.0001
        for value in (low, high):
            workers_ai.parse(json.dumps({"prompt": "x", name: value}).encode(), [], "m")
        for value in (low - step, high + step):
            with pytest.raises(Exception, match="must be a"):
                workers_ai.parse(json.dumps({"prompt": "x", name: value}).encode(), [], "m")


async def test_two_types_of_one_name_are_refused() -> None:
    schemas = Schemas()
    for fields in ([("a", int)], [("b", int)]):
        kind = msgspec.defstruct("Same", fields)
        if schemas.components:
            with pytest.raises(TypeError, match="two types are called Same"):
                schemas.request(kind)
        else:
            schemas.request(kind)


LISTS = [
    path for path, calls in DOCUMENT["paths"].items()
    if {"page", "per_page"} <= {parameter["name"] for parameter in calls.get("get", {}).get("parameters", ())}
]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
async def test_every_list_ends_with_an_empty_page(stack: Stack, path: str) -> None:
    """Both of Cloudflare's SDKs ask for the next page until one is empty, whatever `total_count` says."""
    await stack.post("/ai/finetunes", {"model": DEMO_MODEL, "name": "listed"})
    await stack.post(f"/ai/run/{DEMO_MODEL}", {"prompt": "x"})
    url = path.replace("{account_id}", stack.account).replace("{gateway_id}", "default").replace("{finetune}", "listed")
    first = (await stack.client.get(url, params={"page": 1})).json()
    assert first["result"] or path.endswith("/aliases")  # an alias needs a version with weights
    for page in (first["result_info"]["total_pages"] + 1, 999_999):
        answer = await stack.client.get(url, params={"page": page})
        assert (answer.status_code, answer.json()["result"]) == (200, []), answer.text
        assert answer.json()["result_info"]["total_count"] == first["result_info"]["total_count"]


async def test_the_lists_that_have_pages_are_known() -> None:
    ends = {path.removeprefix("/client/v4").removeprefix("/accounts/{account_id}") for path in LISTS}
    assert {"/accounts", "/memberships", "/ai/models/search", "/ai-gateway/gateways/{gateway_id}/logs"} <= ends
