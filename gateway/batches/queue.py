"""Batches at work: one of each account at a time, a few requests of it side by side, behind the account's own others.

    accepted > queued > running > done          (a restart: running > queued)

The rows are the queue; the task only looks when something was added, when a batch ended, or after `LOOK_S`. A batch
that was interrupted goes on with the requests that have no answer yet (`answered.py`); its answers become visible all
at once, so none is there twice. What the moment forbids (no capacity, a runtime that restarts) is waited for; every
other failure is that request's answer.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import msgspec
from starlette.requests import Request

from gateway.accounts import Accounts
from gateway.batches.answered import Answered, Answers
from gateway.batches.records import Accepted, Batch, BatchRecords
from gateway.choices import Choices
from gateway.errors import (
    InternalError,
    LorikeetError,
    OverCapacity,
    RequestTimeout,
    RuntimeUnavailable,
    StorageUnavailable,
)
from gateway.exchange import Exchange, RecordSink
from gateway.messages import Chunk, Identity, Usage
from gateway.pipeline import Pipeline
from gateway.wire import workers_ai
from gateway.wire.chat_body import usage_object
from runtime.protocol import MAX_PRIORITY
from storage.errors import ObjectMissing, StorageError

logger = logging.getLogger(__name__)
MAX_ACCOUNTS: Final = 8  # with a batch at work at the same time
SIDE_BY_SIDE: Final = 4  # requests of one batch
LOOK_S: Final = 30.0
SWEEP_S: Final = 600.0
MAX_WAITS: Final = 600  # for the moment to pass, of one request
_LONGEST_WAIT_S: Final = 5.0


class BatchQueue:
    """Owned by the app: `start`, then `aclose`."""

    def __init__(
        self,
        records: BatchRecords,
        pipeline: Pipeline,
        accounts: Accounts,
        logs: RecordSink,
        timeout_s: float,
        wait_s: Callable[[LorikeetError], float] = lambda error: min(error.retry_after_s or 1.0, _LONGEST_WAIT_S),
    ) -> None:
        self.records = records
        self._pipeline = pipeline
        self._accounts = accounts
        self._logs = logs
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self._changed = asyncio.Event()
        self._at_work: dict[str, asyncio.Task[None]] = {}  # by account
        self._looking: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to work on what is there."""
        self._looking = asyncio.create_task(self._look(), name="batches")

    def added(self) -> None:
        """There is something new."""
        self._changed.set()

    async def aclose(self) -> None:
        """What is at work stays `running` in its row, and is answered after the next start."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait({self._looking})
            self._looking = None

    async def _look(self) -> None:
        swept = 0.0
        async with asyncio.TaskGroup() as group:
            while True:
                self._changed.clear()
                try:
                    if time.monotonic() - swept > SWEEP_S:
                        await self.records.sweep()
                        swept = time.monotonic()
                    for batch in await self.records.waiting():
                        if batch.account_id not in self._at_work and len(self._at_work) < MAX_ACCOUNTS:
                            self._at_work[batch.account_id] = group.create_task(self._work(batch))
                except StorageError as error:
                    logger.error("batches: the row store does not answer: %s", error)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._changed.wait()

    async def _work(self, batch: Batch) -> None:
        try:
            await self.records.start(batch)
            try:
                accepted = await self.records.accepted(batch)
            except ObjectMissing:
                logger.error("batch %s: its requests are gone", batch.id)
                await self.records.finish(batch, _lost(batch))
            else:
                await self.records.finish(batch, await self._answers(batch, accepted))
        except Exception:  # its row still says that it waits: storage may be away, and one batch may not end the queue
            logger.exception("batch %s: not finished; it is tried again", batch.id)
            await asyncio.sleep(_LONGEST_WAIT_S)
        finally:
            del self._at_work[batch.account_id]
            self._changed.set()

    async def _answers(self, batch: Batch, accepted: Accepted) -> bytes:
        """The result of a poll: answers in the order in which they came to be."""
        weight = (await self._accounts.get_account(batch.account_id)).weight
        identity = Identity(batch.account_id, batch.token_id, frozenset({"workers_ai.read"}), weight)
        answers = Answers(await self.records.parts(batch), functools.partial(self.records.keep, batch))
        indices = iter([index for index in range(len(accepted.requests)) if index not in answers])

        async def take() -> None:
            for index in indices:
                answer, usage = await self._answer(batch, accepted, index, identity)
                tokens = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) if usage else (0, 0, 0)
                answers.add(Answered(index, msgspec.Raw(msgspec.json.encode(answer)), tokens))

        async with asyncio.TaskGroup() as group:
            group.create_task(answers.keep())
            async with asyncio.TaskGroup() as takers:
                for _ in range(SIDE_BY_SIDE):
                    takers.create_task(take())
            answers.close()
        totals = [sum(tokens) for tokens in zip(*(one.tokens for one in answers.all), strict=True)]
        return msgspec.json.encode({"responses": [one.answer for one in answers.all], "usage": usage_object(*totals)})

    async def _answer(
        self, batch: Batch, accepted: Accepted, index: int, identity: Identity
    ) -> tuple[dict[str, Any], Usage | None]:
        for waits in range(MAX_WAITS + 1):
            try:
                result, usage = await self._once(batch, accepted, index, identity)
            except (OverCapacity, RuntimeUnavailable, StorageUnavailable) as error:
                if waits < MAX_WAITS:
                    await asyncio.sleep(self._wait_s(error))
                    continue
                return _told(accepted, index, None, error), None
            except LorikeetError as error:
                return _told(accepted, index, None, error), None
            return _told(accepted, index, result, None), usage
        raise AssertionError("unreachable")

    async def _once(
        self, batch: Batch, accepted: Accepted, index: int, identity: Identity
    ) -> tuple[msgspec.Raw, Usage]:
        """One exchange, logged like any other. Raises LorikeetError, StorageError."""
        exchange = Exchange(_request(batch, accepted), identity, batch.model)
        exchange.body = bytes(accepted.requests[index])
        reply, choices = workers_ai.WorkersAIReply(), Choices()
        error: LorikeetError
        try:
            asked = workers_ai.parse(exchange.body, (), batch.model)
            asked = msgspec.structs.replace(asked, stream=False, reject_if_busy=False, priority=MAX_PRIORITY)
            reply.describe(asked)
            exchange.asked(asked)
            exchange.check_log(self._logs)
            resolved = await self._pipeline.resolve(asked, identity, exchange.log_id, exchange.session)
            exchange.resolved(resolved)
            async with asyncio.timeout(self._timeout_s), contextlib.aclosing(self._pipeline.generate(resolved)) as said:
                usage = await _gather(said, choices, exchange)
            body = reply.whole(choices.whole(), usage)
        except LorikeetError as failure:
            error = failure
        except TimeoutError:
            error = RequestTimeout(f"the answer was not complete within {self._timeout_s:g} s; ask for fewer tokens")
        except StorageError:
            raise
        except Exception:
            logger.exception("log %s: a request of batch %s failed", exchange.log_id, batch.id)
            error = InternalError("Internal error; give the operator the request_id of this batch")
        else:
            await exchange.close(self._logs, 200, body)
            return msgspec.json.decode(body, type=_Envelope).result, usage
        await exchange.close(self._logs, error.status, reply.failure(error), outcome="error", error=error)
        raise error


def _lost(batch: Batch) -> bytes:
    failed = InternalError("the stored requests of this batch are gone; send them again")
    accepted = Accepted([], [None] * batch.num_requests, [])
    answers = [_told(accepted, index, None, failed) for index in range(batch.num_requests)]
    return msgspec.json.encode({"responses": answers, "usage": usage_object(0, 0, 0)})


class _Envelope(msgspec.Struct):
    result: msgspec.Raw


async def _gather(said: AsyncGenerator[Chunk, None], choices: Choices, exchange: Exchange) -> Usage:
    begun = False
    async for chunk in said:
        if not begun:
            begun = True
            exchange.first_byte()
        choices.add(chunk)
        if chunk.usage is not None:
            exchange.finished(chunk)
            return chunk.usage
    raise InternalError("the model's answer ended without an end; try again")


def _told(accepted: Accepted, index: int, result: msgspec.Raw | None, error: LorikeetError | None) -> dict[str, Any]:
    """As the contract has it; why one failed stands in `errors`, which is ours."""
    said: dict[str, Any] = {
        "id": index,
        "result": result or {},
        "success": error is None,
        "external_reference": accepted.references[index],
    }
    if error is not None:
        said["errors"] = [{"code": error.code, "message": error.message}]
    return said


def _request(batch: Batch, accepted: Accepted) -> Request:
    """What the log record of one request is made of: the path and headers that the batch came with."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in accepted.headers]
    path = f"/client/v4/accounts/{batch.account_id}/ai/run/{batch.model}"
    return Request({"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers})
