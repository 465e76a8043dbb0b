"""What a runtime, or the connection to it, can fail with. Failures of one sequence are data (`protocol.Failure`).

    RuntimeFault
    ├── ConfigInvalid    the process was started with settings that it cannot use
    ├── ModelInvalid     the model folder cannot be loaded
    ├── DeviceLost       the device is gone for good (a sticky CUDA error); the process must be replaced
    ├── EngineStopped    the engine thread has ended; nothing can be submitted any more
    ├── DuplicateId      a connection used a sequence id twice
    └── RuntimeLost      (client) no runtime at the other end, or it went away while a sequence was waiting

A runner raises `DeviceLost` when no later step can succeed; any other exception of a step ends only the sequences of
that step.
"""


class RuntimeFault(Exception):
    """Base of every failure in this package."""


class ConfigInvalid(RuntimeFault):
    """The text says which setting, its value, and what is allowed."""


class ModelInvalid(RuntimeFault):
    """The text names the folder and what is wrong with it."""


class DeviceLost(RuntimeFault):
    """No later step on this device can succeed."""


class EngineStopped(RuntimeFault):
    """The engine thread has ended."""


class DuplicateId(RuntimeFault):
    """Two live sequences of one connection would share an id."""


class RuntimeLost(RuntimeFault):
    """The runtime is down, restarting or hung; trying again in a second or two may help."""
