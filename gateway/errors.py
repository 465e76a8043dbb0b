"""Every failure a caller can meet, with its HTTP status and the contract's code.

    LorikeetError
    ├── AuthenticationFailed   401 10000   no token, unknown, expired or disabled token
    ├── PermissionMissing      403 9109    the token lacks the route's permission
    ├── RouteNotFound          404 7000    no such route
    ├── ObjectNotFound         404 7003    an id that is not in the caller's account (or not at all: same answer)
    ├── MethodNotSupported     405 7001    the path exists, the method does not
    ├── BadQuery               400 7001    a query parameter (filter key, enum) is not one of the allowed
    ├── BadInput               400 5006    the body breaks the schema, or an adapter file breaks a rule
    ├── JsonModeUnmet          400 5024    no answer that satisfies the schema, or not a whole one
    ├── EmptyBody              400 3003    nothing was sent
    ├── GatewayNotConfigured   400 2001    `cf-aig-gateway-id` names a gateway that the account does not have
    ├── UnknownModel           400 5007    not in the catalogue, or no weights are configured for it
    ├── InvalidModelId         404 3042    the text cannot be the name of any model
    ├── LoraNotSupported       405 5005    the model takes no adapters
    ├── FinetuneNotFound       404 3037    no such adapter in the caller's account
    ├── FinetuneIncomplete     400 3039    created, but a required file is missing (or was refused)
    ├── FinetuneInUse          409 7012    to be deleted only when nobody uses it, and somebody does
    ├── RequestTooLarge        413 3006    body or file above its limit
    ├── ContextExceeded        413 5021    prompt + max_tokens do not fit the context window
    ├── RequestTimeout         408 3046    the deadline passed
    ├── OverCapacity           429 3040    queue full; carries Retry-After
    ├── RuntimeUnavailable     503 7010    the model's runtime is down or restarting; carries Retry-After
    ├── StorageUnavailable     503 7011    disk full or object store away; carries Retry-After
    └── InternalError          500 7500    a fault of ours; the text says nothing about the inside

A message is one sentence for the caller that says what to change. Statuses of 3037, 7010, 7011, 7012 and 7500 are ours:
the contract names none (docs/decisions/0001-error-codes.md).
"""

from typing import ClassVar


class LorikeetError(Exception):
    """Base: `status`, `code` and OpenAI's `type` belong to the class, `message` to the case.

    `reasons` lists each broken rule on its own where there can be several; `message` then names them all.
    """

    status: ClassVar[int] = 500
    code: ClassVar[int] = 7500
    openai_type: ClassVar[str] = "api_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        param: str | None = None,
        reasons: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reasons = reasons
        self.retry_after_s = retry_after_s
        self.param = param


class InvalidRequest(LorikeetError):
    """Base of what the caller can mend in the request itself."""

    status = 400
    code = 5006
    openai_type = "invalid_request_error"


class AuthenticationFailed(LorikeetError):
    status = 401
    code = 10000
    openai_type = "authentication_error"

    def __init__(self, message: str = "Authentication error") -> None:
        super().__init__(message)


class PermissionMissing(LorikeetError):
    status = 403
    code = 9109
    openai_type = "permission_error"


class RouteNotFound(InvalidRequest):
    status = 404
    code = 7000


class ObjectNotFound(InvalidRequest):
    status = 404
    code = 7003


class MethodNotSupported(InvalidRequest):
    """`allowed`: the methods that the path has, for the `Allow` header."""

    status = 405
    code = 7001

    def __init__(self, message: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


class BadQuery(InvalidRequest):
    code = 7001


class BadInput(InvalidRequest):
    code = 5006


class JsonModeUnmet(InvalidRequest):
    code = 5024


class EmptyBody(InvalidRequest):
    code = 3003


class GatewayNotConfigured(InvalidRequest):
    code = 2001


class UnknownModel(InvalidRequest):
    code = 5007


class InvalidModelId(InvalidRequest):
    status = 404
    code = 3042


class LoraNotSupported(InvalidRequest):
    status = 405
    code = 5005


class FinetuneNotFound(InvalidRequest):
    status = 404
    code = 3037


class FinetuneIncomplete(InvalidRequest):
    code = 3039


class FinetuneInUse(InvalidRequest):
    status = 409
    code = 7012


class RequestTooLarge(InvalidRequest):
    status = 413
    code = 3006


class ContextExceeded(InvalidRequest):
    status = 413
    code = 5021


class RequestTimeout(LorikeetError):
    status = 408
    code = 3046
    openai_type = "timeout_error"


class OverCapacity(LorikeetError):
    status = 429
    code = 3040
    openai_type = "rate_limit_error"


class RuntimeUnavailable(LorikeetError):
    status = 503
    code = 7010


class StorageUnavailable(LorikeetError):
    status = 503
    code = 7011


class InternalError(LorikeetError):
    status = 500
    code = 7500
