"""A runtime without a model, for measuring the gateway: the real protocol on a real socket, and tokens from a list.

    python -m infra.bench.mock_runtime SOCKET VOCAB

What is asked for 16 tokens gets them in one frame. Longer answers are said one token a step, and a step is one frame
with a token of every answer, as an engine's is; between two steps is a pause of `STEP_S`.
"""

import asyncio
import sys
from itertools import cycle, islice
from typing import Final

import uvloop

from gateway.settings import DEMO_MODEL
from runtime.codec import decode_client, encode
from runtime.framing import read_frame
from runtime.protocol import (
    PROTOCOL_VERSION,
    Abort,
    Hello,
    ModelInfo,
    Ping,
    Pong,
    SequenceOutput,
    SequenceTiming,
    Stats,
    Step,
    Submit,
    Welcome,
)

WHOLE: Final = 16
STEP_S: Final = 0.002
_TIMING: Final = SequenceTiming(total_s=0.1, batch_rows=1)
_SAID: Final = tuple(islice(cycle(range(300, 400)), 4096))


class MockRuntime:
    """One connection at a time is enough: one gateway process."""

    def __init__(self, vocab_size: int) -> None:
        self._info = ModelInfo(DEMO_MODEL, "float32", "cpu", 1, vocab_size, 1024, 8, (2,))
        self._speaking: dict[int, list[int]] = {}  # sequence -> [prompt, tokens wanted, tokens said]
        self._work = asyncio.Event()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until the gateway goes."""
        self._speaking.clear()
        speaker = asyncio.create_task(self._speak(writer))
        try:
            while (body := await read_frame(reader)) is not None:
                match decode_client(body):
                    case Hello():
                        writer.write(encode(Welcome(PROTOCOL_VERSION, self._info, 1)))
                    case Ping(sent_at):
                        writer.write(encode(Pong(sent_at, Stats())))
                    case Submit() as submit:
                        wanted = submit.sampling.max_tokens
                        if wanted <= WHOLE:
                            prompt = len(submit.token_ids)
                            writer.write(encode(Step((_last(submit.sequence_id, prompt, wanted, _SAID[:wanted]),))))
                        else:
                            self._speaking[submit.sequence_id] = [len(submit.token_ids), wanted, 0]
                            self._work.set()
                    case Abort(sequence_id):
                        self._speaking.pop(sequence_id, None)
                    case _:
                        pass
        finally:
            speaker.cancel()
            writer.close()

    async def _speak(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._work.wait()
            outputs = []
            for sequence_id, state in list(self._speaking.items()):
                prompt, wanted, said = state
                token = (_SAID[said],)
                state[2] = said = said + 1
                if said == wanted:
                    outputs.append(_last(sequence_id, prompt, wanted, token))
                    del self._speaking[sequence_id]
                else:
                    outputs.append(SequenceOutput(sequence_id, token))
            writer.write(encode(Step(tuple(outputs))))
            await writer.drain()
            if not self._speaking:
                self._work.clear()
            await asyncio.sleep(STEP_S)


def _last(sequence_id: int, prompt: int, wanted: int, token_ids: tuple[int, ...]) -> SequenceOutput:
    return SequenceOutput(
        sequence_id, token_ids, "length", prompt_tokens=prompt, completion_tokens=wanted, timing=_TIMING
    )


async def main(socket_path: str, vocab_size: int) -> None:
    """Serves until it is killed."""
    server = await asyncio.start_unix_server(MockRuntime(vocab_size).connected, socket_path)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
