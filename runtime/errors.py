"""What a runtime, or the connection to it, can fail with. Failures of one sequence are data (`protocol.Failure`).

    RuntimeFault
    ├── ConfigInvalid    the process was started with settings that it cannot use
    ├── ModelInvalid     the model folder cannot be loaded
    ├── AdapterInvalid   an adapter does not fit the base, or is not finite; nothing of it may be used
    ├── LogitsInvalid    some sequences of a step computed NaN or infinity; names them
    ├── GrammarInvalid   nothing can be said by this grammar: it does not compile, or not in bounds
    ├── GrammarsBusy     more grammars wait to be compiled than may
    ├── GrammarStuck     some sequences of a step can say nothing more by their grammar; names them
    ├── RunnerMisused    a batch or a slot that cannot be: a bug of the caller
    ├── DeviceLost       the device is gone for good (a sticky CUDA error); the process must be replaced
    ├── EngineStopped    the engine thread has ended; nothing can be submitted any more
    ├── DuplicateId      a connection used a sequence id twice
    └── RuntimeLost      (client) no runtime at the other end, or it went away while a sequence was waiting

A runner raises `DeviceLost` when no later step can succeed, and `LogitsInvalid` or `GrammarStuck` when only the
sequences that it names are broken: the step may be run again without them, with the same results for the others. Any
other exception of a step ends only the sequences of that step.
"""

from collections.abc import Mapping


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


class GrammarInvalid(RuntimeFault):
    """The text is a clause for the caller: what is wrong with the grammar. `lasting`: it will be so next time too."""

    def __init__(self, reason: str, *, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


class GrammarsBusy(RuntimeFault):
    """Trying again in a second helps."""


class GrammarStuck(RuntimeFault):
    """One caller's grammar has no continuation that the model could say; nobody else's rows are affected."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        super().__init__(f"no continuation in sequences {', '.join(map(str, reasons))}")
        self.reasons = reasons


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
