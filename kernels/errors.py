"""What a kernel can fail with, beside ValueError for arguments that do not fit together.

KernelError
├── TritonMissing    a kernel was launched where Triton is not installed
├── InterpreterMixed kernels were imported for the interpreter and are used on a device, or the other way round
└── TuningInvalid    a file of measured block sizes cannot be used
"""


class KernelError(Exception):
    """Base of this package's own failures."""


class TritonMissing(KernelError):
    """The text says what to install."""


class InterpreterMixed(KernelError):
    """The text says which of the two was meant and how to get it."""


class TuningInvalid(KernelError):
    """The text names the file and what is wrong with it."""
