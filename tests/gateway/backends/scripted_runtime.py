"""A runtime made of the real protocol on a real socket, whose answers, failures and deaths a test decides."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from runtime.codec import decode_client, encode
from runtime.framing import read_frame
from runtime.protocol import (
    PROTOCOL_VERSION,
    Abort,
    Failure,
    FailureKind,
    Forget,
    Hello,
    ModelInfo,
    Ping,
    Places,
    Pong,
    SequenceOutput,
    SequenceTiming,
    Stats,
    Step,
    Submit,
    TokenScore,
    Welcome,
    Where,
)

EOS = 2
INFO = ModelInfo("@cf/lorikeet/demo-lora", "float32", "cpu", 1, 1024, 200, 8, (EOS,))

# Token ids are said one a frame; an Event is waited for; "hang up" closes the connection; a Failure ends the sequence.
Said = int | asyncio.Event | str | Failure


class ScriptedRuntime:
    """`script` decides what is said to a Submit; `aborted` and `submitted` tell what the gateway did."""

    def __init__(self, script: Callable[[Submit], Sequence[Said]], info: ModelInfo = INFO) -> None:
        self.script = script
        self.info = info
        self.scores = False
        self.submitted: list[Submit] = []
        self.aborted: list[int] = []
        self.forgotten: list[str] = []
        self.stats = Stats()
        self.news = asyncio.Condition()
        self._writers: set[asyncio.StreamWriter] = set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(condition)

    @contextlib.asynccontextmanager
    async def listening(self, path: Path) -> AsyncIterator[None]:
        """Serves on a Unix socket; every connection is cut at the end."""
        server = await asyncio.start_unix_server(self._connected, str(path))
        try:
            yield
        finally:
            server.close()
            self.hang_up()
            await server.wait_closed()
            path.unlink(missing_ok=True)

    def hang_up(self) -> None:
        """Cuts every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        speaking: dict[int, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while (body := await read_frame(reader)) is not None:
                    match decode_client(body):
                        case Hello():
                            writer.write(encode(Welcome(PROTOCOL_VERSION, self.info, 1)))
                        case Ping(sent_at):
                            writer.write(encode(Pong(sent_at, self.stats)))
                        case Submit() as submit:
                            self.submitted.append(submit)
                            speaking[submit.sequence_id] = group.create_task(self._speak(submit, writer))
                        case Abort(sequence_id):
                            self.aborted.append(sequence_id)
                            speaking[sequence_id].cancel()
                        case Forget(digest):
                            self.forgotten.append(digest)
                        case Where(number, digests):
                            writer.write(encode(Places(number, (None,) * len(digests))))
                        case _:
                            pass
                    async with self.news:
                        self.news.notify_all()
                for task in speaking.values():
                    task.cancel()
        except* OSError:
            pass  # the gateway went away; that is its right
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _speak(self, submit: Submit, writer: asyncio.StreamWriter) -> None:
        said = 0

        def step(**fields: object) -> None:
            output = SequenceOutput(submit.sequence_id, **fields)  # type: ignore[arg-type]
            writer.write(encode(Step((output,))))

        for item in self.script(submit):
            if isinstance(item, asyncio.Event):
                await item.wait()
            elif isinstance(item, Failure):
                step(finish_reason="error", failure=item)
                return
            elif isinstance(item, str):
                self.hang_up()
                return
            else:
                said += 1
                step(token_ids=(item,), scores=(TokenScore(-0.5),) if self.scores else ())
                await asyncio.sleep(0)
                if item in submit.sampling.stop_token_ids or said == submit.sampling.max_tokens:
                    break
        ended = "length" if said == submit.sampling.max_tokens and item != EOS else "stop"
        step(
            finish_reason=ended,
            prompt_tokens=len(submit.token_ids),
            completion_tokens=said,
            cached_tokens=1,
            timing=SequenceTiming(total_s=0.5, batch_rows=3),
        )


def failure(kind: FailureKind, retry_after_s: float | None = None) -> Failure:
    return Failure(kind, f"because of {kind} at /srv/secret", retry_after_s)
