"""A uniform number from a request's seed and the position of the token that is drawn, and from nothing else.

    u(seed, position) = (r0 * 2^21 + r1 / 2^11) / 2^53       r0 .. r3 = Philox 4x32-10 (key seed, counter position)

So a request draws the same whatever else is in its batch, on whichever row, and again after a preemption. Philox is a
counter's hash: no state is kept anywhere, and a graph's replay needs the position only.
"""

from typing import Final

from kernels.triton_jit import Number, jit, tl

_WORD: Final = 0xFFFFFFFF
_ROUNDS: Final = 10
_KEYS: Final = (0x9E3779B9, 0xBB67AE85)
_FACTORS: Final = (0xD2511F53, 0xCD9E8D57)


def philox_reference(key: int, counter: int) -> tuple[int, int, int, int]:
    """Ten rounds of Philox 4x32 for a key of 64 bits and a counter of 128; lowest words first."""
    c0, c1, c2, c3 = ((counter >> shift) & _WORD for shift in (0, 32, 64, 96))
    k0, k1 = key & _WORD, (key >> 32) & _WORD
    for _ in range(_ROUNDS):
        low, high = _FACTORS[0] * c0, _FACTORS[1] * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & _WORD, (low >> 32) ^ c3 ^ k1, low & _WORD
        k0, k1 = (k0 + _KEYS[0]) & _WORD, (k1 + _KEYS[1]) & _WORD
    return c0, c1, c2, c3


def philox_uniform_reference(seed: int, position: int) -> float:
    """In [0, 1); the seed counts modulo 2^64, so that a negative one is fine."""
    r0, r1, _, _ = philox_reference(seed, position)
    return (r0 * (1 << 21) + (r1 >> 11)) / (1 << 53)


@jit
def philox_uniform(seed: Number, position: Number) -> Number:
    """fp64 in [0, 1), for a seed of 64 bits and a position of 32."""
    counter = position.to(tl.uint32)
    r0, r1, _, _ = tl.philox(seed, counter, counter * 0, counter * 0, counter * 0)
    return (r0.to(tl.float64) * 2097152.0 + (r1 >> 11).to(tl.float64)) * 1.1102230246251565e-16
