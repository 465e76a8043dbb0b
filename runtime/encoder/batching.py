"""Texts of many callers in batches: whatever waits is sorted by length and cut where padding would pass the budget.

One thread owns the model and takes all that waits; while it computes, the next texts gather. So a lone caller does not
wait for others, and many callers share a batch. A batch that fails fails its own texts only.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from runtime.encoder.config import Pooling

logger = logging.getLogger(__name__)
MAX_BATCH: Final = 256
HUNG_S: Final = 300.0  # no batch within the token budget takes so long, however slow the machine


@dataclass
class Text:
    """One text and whoever waits for it."""

    token_ids: tuple[int, ...]
    types: tuple[int, ...]
    pooling: Pooling
    answer: "asyncio.Future[bytes]"


class Model(Protocol):
    """What the thread runs."""

    def __call__(self, texts: Sequence[Text]) -> Sequence[bytes]:
        """One answer a text."""
        ...


def cut(texts: Sequence[Text], batch_tokens: int) -> list[list[Text]]:
    """Batches of texts of similar length: longest times number within the budget, at least one text each."""
    batches: list[list[Text]] = []
    for text in sorted(texts, key=lambda text: len(text.token_ids)):
        batch = batches[-1] if batches else None
        if batch is None or len(batch) == MAX_BATCH or (len(batch) + 1) * len(text.token_ids) > batch_tokens:
            batches.append([text])
        else:
            batch.append(text)
    return batches


class Batching:
    """`submit` from the event loop; the thread answers through it."""

    def __init__(self, model: Model, batch_tokens: int, max_waiting: int, loop: asyncio.AbstractEventLoop) -> None:
        self._model, self._batch_tokens, self._max_waiting, self._loop = model, batch_tokens, max_waiting, loop
        self._waiting: deque[Text] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._batch_began: float | None = None
        self._thread = threading.Thread(target=self._run, name="encoder", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """After the batch at work."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join(timeout_s)

    @property
    def hangs(self) -> bool:
        """True when the model has been at one batch for too long."""
        began = self._batch_began
        return began is not None and time.monotonic() - began > HUNG_S

    def submit(self, texts: Sequence[Text]) -> bool:
        """False when too many wait already; then none was taken."""
        with self._changed:
            if self._stopped or len(self._waiting) + len(texts) > self._max_waiting:
                return False
            self._waiting.extend(texts)
            self._changed.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), 4 * MAX_BATCH))]
            for batch in cut([text for text in taken if not text.answer.cancelled()], self._batch_tokens):
                self._batch_began = time.monotonic()
                try:
                    answers: Sequence[bytes | Exception] = self._model(batch)
                except Exception as error:
                    logger.exception("a batch of %d texts failed", len(batch))
                    answers = [error] * len(batch)
                self._batch_began = None
                self._loop.call_soon_threadsafe(_answer, batch, answers)


def _answer(batch: Sequence[Text], answers: Sequence[bytes | Exception]) -> None:
    for text, answer in zip(batch, answers, strict=True):
        if text.answer.done():
            continue
        if isinstance(answer, Exception):
            text.answer.set_exception(answer)
        else:
            text.answer.set_result(answer)
