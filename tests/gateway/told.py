"""What /openapi.json says of a POST below an account, held against a real body and a real reply."""

from typing import Any

import jsonschema

from gateway.app import ROWS
from gateway.openapi.document import document
from gateway.routes import ACCOUNT

_DOCUMENT = document(ROWS, "0")


def check_told(path: str, body: Any, reply: Any) -> None:
    """Raises jsonschema.ValidationError."""
    call = _DOCUMENT["paths"][ACCOUNT + path]["post"]
    for told, value in ((call["requestBody"], body), (call["responses"]["200"], reply)):
        schema = {**told["content"]["application/json"]["schema"], "components": _DOCUMENT["components"]}
        jsonschema.Draft202012Validator(schema).validate(value)
