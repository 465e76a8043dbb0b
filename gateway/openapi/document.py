"""The OpenAPI document: the route table, one `Operation` a row, and the types behind them. Nothing is written twice.

A row without an operation stops the start, so the document cannot lag behind the routes. Rows that differ by a slash at
the end only are one path.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.endpoints import openapi
from gateway.openapi import control, finetune_calls, inference, log_calls
from gateway.openapi.operation import Failure, Form, Operation, PageInfo, Refusal, settings_in_query
from gateway.openapi.schema import Schema, Schemas
from gateway.routes import ACCOUNT, ApiRoute, PublicRoute
from gateway.wire.body import Settings

_OPERATIONS: Final[Mapping[Any, Operation]] = {
    **inference.OPERATIONS,
    **control.OPERATIONS,
    **finetune_calls.OPERATIONS,
    **log_calls.OPERATIONS,
    openapi.describe: Operation("This document", dict[str, Any], "none", ours=True),
}
_PARAMETER: Final = re.compile(r"\{(\w+)(?::path)?\}")
_REFUSED: Final[Mapping[int, str]] = {
    400: "The request is not what it must be; the message names the field",
    401: "No token, or not a valid one",
    403: "The token lacks the permission",
    404: "Nothing of this name in the account",
    405: "The model does not take adapters",
    408: "Not complete in time",
    409: "In use",
    413: "Too large, or beyond the context window",
    429: "Out of capacity; see Retry-After",
    500: "A fault of ours",
    503: "Something behind the gateway is down or restarting; see Retry-After",
}
_PATH_IDS: Final[Mapping[str, str]] = {
    "account_id": "The account.",
    "model": "A model of the catalogue; its slashes may be written as they are.",
    "finetune": "Name or id of a finetune.",
    "version": "The number of a version.",
    "alias": "A name for versions; `default` is what the bare name means.",
    "file_name": "adapter_config.json or adapter_model.safetensors.",
    "gateway_id": "The gateway; there is `default`.",
    "log_id": "A log: what `cf-aig-log-id` said.",
}


def document(rows: Sequence[ApiRoute | PublicRoute], version: str) -> dict[str, Any]:
    """OpenAPI 3.1. Raises LookupError for a row that nothing here describes."""
    schemas = Schemas()
    refusal, paths = schemas.reply(Refusal), dict[str, dict[str, Any]]()
    for row in rows:
        path = _PARAMETER.sub(r"{\1}", row.path)
        if path.endswith("/"):
            continue
        operation = _OPERATIONS.get(row.handler)
        if operation is None:
            raise LookupError(f"gateway/openapi does not describe {row.method} {row.path}")
        paths.setdefault(path, {})[row.method.lower()] = _operation(row, operation, schemas, refusal)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lorikeet",
            "version": version,
            "description": "The calls of Workers AI and its relatives, self-hosted. Calls and fields that the original "
            "does not have are marked with `x-lorikeet-addition`.",
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}, {"key": [], "email": []}, {"api_key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Auth-Key"},
                "email": {"type": "apiKey", "in": "header", "name": "X-Auth-Email"},
                "api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _operation(row: ApiRoute | PublicRoute, operation: Operation, schemas: Schemas, refusal: Schema) -> dict[str, Any]:
    is_api = isinstance(row, ApiRoute)
    said: dict[str, Any] = {
        "operationId": f"{row.handler.__module__.rpartition('.')[2]}.{row.handler.__name__}"
        + ("" if not row.path.startswith(ACCOUNT + "/tokens") else ".of_account"),
        "summary": operation.summary,
        "description": " ".join((row.handler.__doc__ or "").split()),
        "tags": [row.handler.__module__.rpartition(".")[2]],
        "parameters": _parameters(row, operation),
        "responses": _responses(row, operation, schemas, refusal),
    }
    if isinstance(row, ApiRoute):
        said["x-permission"] = row.permission
    else:
        said["security"] = []
    if operation.ours:
        said["x-lorikeet-addition"] = True
    if operation.is_upload:
        said["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _UPLOAD}}}
    if operation.body is not None and is_api:
        schema = schemas.request(operation.body, without=operation.without)
        if operation.one_of:
            choices = [{"required": [name]} for name in operation.one_of]
            required = ["model"] if "model" in schema.get("properties", {}) else []
            schema = {**schema, "oneOf": choices} if len(choices) > 1 else {**schema, "required": [*operation.one_of]}
            if required:
                schema["required"] = [*required, *schema.get("required", [])]
        if operation.other_bodies:
            schema = {"anyOf": [schema, *(_form(form, schemas) for form in operation.other_bodies)]}
        content: dict[str, Any] = {"schema": schema}
        if operation.example is not None:
            content["example"] = operation.example
        said["requestBody"] = {"required": operation.body_required, "content": {"application/json": content}}
    return said


def _form(form: Form, schemas: Schemas) -> Schema:
    left_out = frozenset(form.body.__struct_encode_fields__) - form.fields
    return {**schemas.request(form.body, without=left_out), "required": list(form.required)}


def _parameters(row: ApiRoute | PublicRoute, operation: Operation) -> list[dict[str, Any]]:
    path = [
        {"name": name, "in": "path", "required": True, "description": _PATH_IDS[name], "schema": {"type": "string"}}
        for name in _PARAMETER.findall(row.path)
    ]
    body = operation.body
    settings = settings_in_query(body) if body is not None and issubclass(body, Settings) else ()
    query = [
        {"name": q.name, "in": "query", "required": q.required, "description": q.description, "schema": q.schema}
        for q in (*operation.query, *settings)
    ]
    return path + query


def _responses(row: ApiRoute | PublicRoute, operation: Operation, schemas: Schemas, refusal: Schema) -> dict[str, Any]:
    content: dict[str, Any] = {media: {} for media in operation.media}
    if "application/json" in content and operation.reply is not None:
        content["application/json"] = {"schema": _reply(operation, schemas)}
    if operation.is_stream:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    answered: dict[str, Any] = {"200": {"description": "Done", "content": content}}
    if isinstance(row, PublicRoute):
        if row.path == "/readyz":
            answered["503"] = {"description": "Not yet", "content": {"application/json": {}}}
        return answered
    for status, text in _REFUSED.items():
        answered[str(status)] = {"description": text, "content": {"application/json": {"schema": refusal}}}
    return answered


def _reply(operation: Operation, schemas: Schemas) -> Schema:
    result = schemas.reply(operation.reply)
    if operation.other_replies:
        result = {"anyOf": [result, *(schemas.reply(other) for other in operation.other_replies)]}
    if operation.envelope == "none":
        return result
    properties: Schema = {
        "success": {"const": True},
        # Makers of clients pass over a reply with an array that has no word on its items, even an empty one.
        "errors": {"type": "array", "items": schemas.reply(Failure), "maxItems": 0},
        "messages": {"type": "array", "items": schemas.reply(Failure)},
        "result": result,
    }
    required = ["success", "errors", "messages", "result"]
    if operation.envelope == "page":
        properties["result"] = {"type": "array", "items": result}
        properties["result_info"] = schemas.reply(PageInfo)
        required.append("result_info")
    return {"type": "object", "properties": properties, "required": required}


_UPLOAD: Final[Schema] = {
    "type": "object",
    "properties": {
        "file_name": {"type": "string", "enum": ["adapter_config.json", "adapter_model.safetensors"]},
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
    },
    "required": ["file_name", "file"],
}
