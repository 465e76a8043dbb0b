"""What went wrong in the runtime as the typed error that the caller gets; what only the operator can mend is logged."""

import logging
from typing import Final, NoReturn

from gateway.errors import (
    BadInput,
    ContextExceeded,
    FinetuneNotFound,
    InternalError,
    JsonModeUnmet,
    OverCapacity,
    RequestTimeout,
    RuntimeUnavailable,
    StorageUnavailable,
)
from gateway.messages import ResolvedRequest
from runtime.client import RuntimeLost
from runtime.protocol import Failure

logger = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 2.0


def unavailable(error: RuntimeLost) -> RuntimeUnavailable:
    """The connection ended, or was not there in time."""
    logger.warning("runtime unavailable: %s", error)
    return RuntimeUnavailable("the model's runtime is down or restarting; try again soon", retry_after_s=RETRY_AFTER_S)


def raise_failure(failure: Failure, request: ResolvedRequest) -> NoReturn:
    """Raises the error for a sequence that the runtime ended without an answer."""
    retry_after_s = failure.retry_after_s
    name = request.request.lora
    match failure.kind:
        case "overloaded":
            raise OverCapacity("Capacity temporarily exceeded, please try again.", retry_after_s=retry_after_s or 1)
        case "too_long":
            raise ContextExceeded(failure.message)
        case "timeout":
            raise RequestTimeout("the answer was not complete in time; ask for fewer tokens or try again")
        case "grammar":
            if request.request.json_schema is not None:
                raise JsonModeUnmet(f"AiError: JSON Mode couldn't be met: {failure.message}", param="response_format")
            raise BadInput(f"AiError: Bad input: Error: 'tools' cannot be enforced: {failure.message}", param="tools")
        case "adapter_missing":
            raise FinetuneNotFound(
                f"AiError: AiError: Finetune {name} not found: its stored file is gone; upload it as a new version"
            )
        case "adapter_too_large":
            raise BadInput(f"finetune {name} cannot be served by this deployment: {failure.message}", param="lora")
        case "adapter_unavailable":
            logger.warning("log %s: adapter unavailable: %s", request.log_id, failure.message)
            raise StorageUnavailable(
                "the finetune's file cannot be read at the moment", retry_after_s=retry_after_s or 2
            )
        case "adapter_corrupt":
            logger.error("log %s: adapter damaged: %s", request.log_id, failure.message)
            raise InternalError(f"the stored file of finetune {name} is damaged; upload it as a new version")
        case "internal":
            logger.error("log %s: runtime failure: %s", request.log_id, failure.message)
            raise InternalError("the model failed on this request; try again")
