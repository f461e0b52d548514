"""Brace patterns, as shells expand them: many shards in one word."""

import re
from pathlib import Path

from simmim.errors import ConfigError

MOST = 1_000_000
"""Most words that one pattern may stand for."""
RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def has_braces(text: str) -> bool:
    """Tell whether ``text`` is a pattern that stands for other words than itself.

    A file or folder that is really called so is no pattern.
    """
    return "{" in text and not Path(text).exists() and expand_braces(text) != [text]


def expand_braces(text: str) -> list[str]:
    """Expand ``{000..127}``, ``{a..d}``, ``{a,b}`` and nestings of these, in the order of a shell.

    Numbers keep the zeros before them: ``{08..11}`` is 08, 09, 10, 11. Braces without comma or
    range, or without a partner, stay as they are.

    Raises:
        ConfigError: The pattern stands for more than a million words.
    """
    words = _expand(text)
    if len(words) > MOST:
        raise ConfigError(_too_many(text))
    return words


def _expand(text: str) -> list[str]:
    start = text.find("{")
    while start >= 0:
        end = _partner(text, start)
        options = _options(text, text[start + 1 : end]) if end > 0 else None
        if options is not None:
            tails = _expand(text[end + 1 :])
            if len(options) * len(tails) > MOST:
                raise ConfigError(_too_many(text))
            return [text[:start] + option + tail for option in options for tail in tails]
        start = text.find("{", start + 1)
    return [text]


def _partner(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return -1


def _options(text: str, inner: str) -> list[str] | None:
    match = RANGE.fullmatch(inner)
    if match:
        return _numbers(text, *match.groups())
    if re.fullmatch(r"[a-z]\.\.[a-z]|[A-Z]\.\.[A-Z]", inner):
        low, high = ord(inner[0]), ord(inner[-1])
        step = 1 if low <= high else -1
        return [chr(code) for code in range(low, high + step, step)]
    pieces, depth, begin = [], 0, 0
    for i, letter in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            pieces.append(inner[begin:i])
            begin = i + 1
    if not pieces:
        return None
    return [word for piece in (*pieces, inner[begin:]) for word in _expand(piece)]


def _numbers(text: str, first: str, last: str, step: str | None) -> list[str]:
    low, high = int(first), int(last)
    by = abs(int(step or 1)) or 1
    if abs(high - low) // by >= MOST:
        raise ConfigError(_too_many(text))
    values = range(low, high + 1, by) if low <= high else range(low, high - 1, -by)
    padded = any(re.match(r"-?0\d", number) for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return [f"{value:0{width}d}" for value in values]


def _too_many(text: str) -> str:
    return f"the pattern {text} stands for more than {MOST:,} files; give a folder of shards."
