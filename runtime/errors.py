"""What a runtime, or the connection to it, can fail with. Failures of one sequence are data (`protocol.Failure`).

    RuntimeFault
    ├── ConfigInvalid    the process was started with settings that it cannot use
    ├── ModelInvalid     the model folder cannot be loaded
    ├── AdapterInvalid   an adapter does not fit the base, or is not finite; nothing of it may be used
    ├── LogitsInvalid    some sequences of a step computed NaN or infinity; names them
    ├── RunnerMisused    a batch or a slot that cannot be: a bug of the caller
    ├── DeviceLost       the device is gone for good (a sticky CUDA error); the process must be replaced
    ├── EngineStopped    the engine thread has ended; nothing can be submitted any more
    ├── DuplicateId      a connection used a sequence id twice
    └── RuntimeLost      (client) no runtime at the other end, or it went away while a sequence was waiting

A runner raises `DeviceLost` when no later step can succeed, and `LogitsInvalid` when only the sequences that it names
are broken: the step may be run again without them, with the same results for the others. Any other exception of a
step ends only the sequences of that step.
"""


class RuntimeFault(Exception):
    """Base of every failure in this package."""


class ConfigInvalid(RuntimeFault):
    """The text says which setting, its value, and what is allowed."""


class ModelInvalid(RuntimeFault):
    """The text names the folder and what is wrong with it."""


class AdapterInvalid(RuntimeFault):
    """The slot that was being written is empty again."""


class LogitsInvalid(RuntimeFault):
    """One account's weights made its own sequences overflow; nobody else's rows are affected."""

    def __init__(self, sequence_ids: tuple[int, ...]) -> None:
        super().__init__(f"logits that are not finite in sequences {', '.join(map(str, sequence_ids))}")
        self.sequence_ids = sequence_ids


class RunnerMisused(RuntimeFault):
    """The text says which rule of the runner's contract was broken."""


class DeviceLost(RuntimeFault):
    """No later step on this device can succeed."""


class EngineStopped(RuntimeFault):
    """The engine thread has ended."""


class DuplicateId(RuntimeFault):
    """Two live sequences of one connection would share an id."""


class RuntimeLost(RuntimeFault):
    """The runtime is down, restarting or hung; trying again in a second or two may help."""
