"""One encoder's process: `python -m runtime.encoder`. The first line of standard input is its configuration; the pipe's
end means that the parent is gone. On standard output: "ready" when texts can be sent.

A connection that breaks the protocol loses its own requests. Exit codes as those of `runtime.process`.
"""

import asyncio
import contextlib
import hmac
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from runtime.encoder.batching import Batching, Text
from runtime.encoder.config import EncoderConfig
from runtime.encoder.protocol import Encode, Encoded, EncodeFailed, Greeted, Greeting, Ping, Pong, frame, read_request
from runtime.errors import ConfigInvalid, ModelInvalid
from runtime.framing import read_frame
from runtime.protocol import EXIT_CONFIG, ProtocolError

HELLO_TIMEOUT_S: Final = 5.0
logger = logging.getLogger(__name__)


def main() -> None:
    """Entry point of `python -m runtime.encoder`."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    code = 0
    try:
        config = EncoderConfig.from_json(sys.stdin.buffer.readline())
        threading.Thread(target=_follow_parent, name="lifeline", daemon=True).start()
        asyncio.run(serve(config))
    except (ConfigInvalid, ModelInvalid) as error:
        print(f"encoder: {error}", file=sys.stderr)
        code = EXIT_CONFIG
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch's pool would hold the interpreter's shutdown up


def _follow_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(sys.stdin.fileno(), 4096):
            pass
    os._exit(1)


async def serve(config: EncoderConfig) -> None:
    """Until a signal. Raises ModelInvalid, ConfigInvalid."""
    try:
        import torch

        from runtime.encoder.bert import BertEncoder, check_ids
    except ModuleNotFoundError as error:
        need = "an encoder needs: pip install 'lorikeet[runtime]'"
        raise ConfigInvalid(f"{error.name} is not installed; {need}") from error
    if config.threads:
        torch.set_num_threads(config.threads)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    model = await asyncio.to_thread(BertEncoder, Path(config.model_folder), config.task, torch.device(config.device))

    def run(texts: Sequence[Text]) -> Sequence[bytes]:
        ids = [text.token_ids for text in texts]
        if config.task == "rank":
            rows = model.rank(ids, [text.types for text in texts]).unsqueeze(-1)
        else:
            rows = model.embed(ids, [text.pooling for text in texts])
        values = rows.to("cpu", torch.float32).numpy().astype("<f4", copy=False)
        return [row.tobytes() for row in values]

    batching = Batching(run, config.batch_tokens, config.max_waiting, loop)
    batching.start()
    size = 1 if config.task == "rank" else model.shape.hidden_size
    welcome = frame(Greeted(config.model, config.task, size, model.shape.max_tokens))

    async def answer(asked: Encode, writer: asyncio.StreamWriter) -> None:
        wrong = check_ids(model.shape, asked.token_ids, asked.types)
        if wrong is None and config.task == "rank" and not asked.types:
            wrong = "pairs need types"
        if wrong is not None:
            writer.write(frame(EncodeFailed(asked.number, "too_long", wrong)))
            return
        types = asked.types or ((),) * len(asked.token_ids)
        texts = [Text(ids, kinds, asked.pooling, loop.create_future())
                 for ids, kinds in zip(asked.token_ids, types, strict=True)]  # fmt: skip
        if not batching.submit(texts):
            writer.write(frame(EncodeFailed(asked.number, "overloaded", "too many texts are waiting")))
            return
        try:
            values = b"".join([await text.answer for text in texts])
        except asyncio.CancelledError:
            raise
        except Exception:  # told in the log by the thread
            writer.write(frame(EncodeFailed(asked.number, "internal", "the encoder failed on this batch")))
        else:
            writer.write(frame(Encoded(asked.number, values)))
        finally:
            for text in texts:
                if not text.answer.done():
                    text.answer.cancel()
                elif not text.answer.cancelled():
                    text.answer.exception()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.CancelledError):  # the process ends; asyncio would print a traceback
            await connected(reader, writer)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                body = await read_frame(reader)
            hello = None if body is None else read_request(body)
            if not isinstance(hello, Greeting) or not hmac.compare_digest(hello.token.encode(), config.token.encode()):
                return
            writer.write(welcome)
            async with asyncio.TaskGroup() as group:
                while (body := await read_frame(reader)) is not None:
                    asked = read_request(body)
                    if isinstance(asked, Ping):
                        if not batching.hangs:
                            writer.write(frame(Pong()))
                        continue
                    if not isinstance(asked, Encode):
                        raise ProtocolError("a second greeting")
                    group.create_task(answer(asked, writer))
                raise ConnectionResetError("the gateway is gone")  # what it asked for is no use to anybody
        except* (OSError, ProtocolError, TimeoutError) as errors:
            logger.info("a connection ended: %s", errors.exceptions[0])
        finally:
            writer.close()

    await asyncio.to_thread(Path(config.socket_path).unlink, True)  # the leftover of a crash
    server = await asyncio.start_unix_server(accepted, config.socket_path)
    print("ready", flush=True)
    await stop.wait()
    server.close()
    batching.stop(5.0)
