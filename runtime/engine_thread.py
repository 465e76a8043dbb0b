"""The thread that owns the engine, and with it the device: commands in, step results out.

    event loop --post--> bounded queue > [commands, one step]* > on_step --> (the service hands it to the event loop)

It steps as long as steps make progress and sleeps on a condition otherwise: until a command comes or the next
deadline. An error that the engine does not turn into a `Failure` ends the thread (`on_end` gets it): the process is
of no use any more, and says so by leaving.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from runtime.engine import Engine, StepResult
from runtime.errors import EngineStopped

logger = logging.getLogger(__name__)

Command = Callable[[Engine], None]
MAX_COMMANDS: Final = 4096
MAX_SLEEP_S: Final = 60.0
# While only copies are under way: other threads need the interpreter more than this one needs to look at once.
COPY_SLEEP_S: Final = 0.0005


class EngineThread:
    """`start`, then `post` from any thread, then `stop` and `join`. Callbacks run on the engine's thread."""

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float],
        *,
        on_step: Callable[[StepResult], None],
        on_end: Callable[[BaseException | None], None],
        max_commands: int = MAX_COMMANDS,
    ) -> None:
        self._engine, self._clock, self._on_step, self._on_end = engine, clock, on_step, on_end
        self._max_commands = max_commands
        self._commands: deque[Command] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._ended = False
        self._turn_began_at: float | None = None
        # A daemon: a step that never returns must not keep the process from leaving.
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Starts stepping."""
        self._thread.start()

    def offer(self, command: Command) -> bool:
        """Queues new work; False, with nothing queued, when the engine is behind by `max_commands`.

        Raises EngineStopped.
        """
        with self._wake:
            self._check()
            if len(self._commands) >= self._max_commands:
                return False
            self._put(command)
            return True

    def post(self, command: Command) -> None:
        """Queues what must not get lost: ends, answers, results. Their number is bounded by the work they are about.

        Ignored once the engine has ended, for then there is nothing left to end.
        """
        with self._wake:
            if not self._ended:
                self._put(command)

    def stop(self) -> None:
        """The thread ends after its present step."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def join(self, timeout_s: float) -> bool:
        """Waits for the end; False when the thread still runs."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def busy_s(self) -> float:
        """How long the present turn (commands and a step) has lasted; 0 while asleep. From any thread."""
        began = self._turn_began_at
        return 0.0 if began is None else self._clock() - began

    def _check(self) -> None:
        if self._stopping or self._ended:
            raise EngineStopped("the engine has stopped")

    def _put(self, command: Command) -> None:
        self._commands.append(command)
        self._wake.notify()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            self._loop()
        except BaseException as fault:
            logger.exception("the engine ended")
            error = fault
        finally:
            with self._wake:
                self._turn_began_at = None
                self._ended = True
                self._commands.clear()
            self._on_end(error)

    def _loop(self) -> None:
        busy = True
        while True:
            commands = self._take(busy)
            if commands is None:
                return
            self._turn_began_at = self._clock()
            for command in commands:
                command(self._engine)
            result = self._engine.step()
            busy = result.progressed
            if result.outputs or result.statuses:
                self._on_step(result)
            self._turn_began_at = None
            if result.only_copies:
                self._pause()

    def _pause(self) -> None:
        with self._wake:
            if not (self._commands or self._stopping):
                self._wake.wait(COPY_SLEEP_S)

    def _take(self, busy: bool) -> deque[Command] | None:
        """What was posted; waits for it when there is nothing else to do. None when the thread shall end."""
        with self._wake:
            while not (busy or self._commands or self._stopping):
                deadline = self._engine.next_deadline
                timeout_s = None if deadline is None else min(max(0.0, deadline - self._clock()), MAX_SLEEP_S)
                if not self._wake.wait(timeout_s):
                    break
            if self._stopping:
                return None
            commands, self._commands = self._commands, deque()
            return commands
