"""`rank_pattern` and `alpha_pattern` of an adapter's config: which modules get their own rank or alpha.

A key is a regular expression that must match the end of a module's name, from a dot or from its start; the first key
that matches wins. Keys come from callers, so only a small part of the language is taken: plain names, `.`, `\\d`, sets
and groups of alternatives, with at most two repetitions, none of a group. Such a match cannot run away. Plain names,
which is what training tools write, are compared without the regular expression engine.
"""

import re
from collections.abc import Mapping
from typing import Final

MAX_KEYS: Final = 4096
MAX_EXPRESSIONS: Final = 64
_PLAIN = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_ATOM = r"(?:[A-Za-z0-9_]|\\?\.|\\d|\[\^?[A-Za-z0-9_-]{1,64}\])"
_SAFE = re.compile(rf"\^?(?:{_ATOM}(?:[*+?]|\{{[0-9]{{1,3}}(?:,[0-9]{{0,3}})?\}})?|\((?:\?:)?(?:{_ATOM}|\|)+\))+\$?")
_REPETITION = re.compile(r"[*+{]|(?<!\()\?")


class Patterns:
    """Ordered (key, value) pairs, compiled; `value(name)` is the first match's value or None."""

    def __init__(self, pairs: Mapping[str, float]) -> None:
        """Raises ValueError with a sentence for a key that is not taken."""
        if len(pairs) > MAX_KEYS:
            raise ValueError(f"has {len(pairs)} keys; at most {MAX_KEYS} are accepted")
        self._plain: dict[str, tuple[int, float]] = {}
        self._expressions: list[tuple[int, re.Pattern[str], float]] = []
        for position, (key, value) in enumerate(pairs.items()):
            plain = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
            if _PLAIN.fullmatch(plain) and not key.startswith("^"):
                self._plain.setdefault(plain, (position, value))
            else:
                self._expressions.append((position, _compiled(key), value))
        if len(self._expressions) > MAX_EXPRESSIONS:
            raise ValueError(f"has more than {MAX_EXPRESSIONS} keys that are not plain module names")

    def value(self, module_name: str) -> float | None:
        """For a full name such as "model.layers.0.self_attn.q_proj"."""
        parts = module_name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        found = [self._plain[end] for end in ends if end in self._plain]
        found += [(place, value) for place, expression, value in self._expressions if expression.match(module_name)]
        return min(found)[1] if found else None


def _compiled(key: str) -> re.Pattern[str]:
    if len(key) > 256 or not _SAFE.fullmatch(key) or len(_REPETITION.findall(key)) > 2:
        raise ValueError(
            f"has the key {key[:80]!a}, which is not accepted; use module names, if need be with \\d+, [0-9], "
            "(a|b) and at most two repetitions"
        )
    try:
        return re.compile(rf"(?:.*\.)?(?:{key})$")
    except re.error as error:
        raise ValueError(f"has the key {key[:80]!a}, which is not a regular expression: {error}") from error
