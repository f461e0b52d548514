"""What ``simmim scan`` says on the terminal: one screen."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from simmim.data.audit.facts import Facts
from simmim.report.words import count, percent

_SHOWN = 3
LARGE = 1500
"""Median of the shorter side, in pixels, from which much is lost where an image is made small."""


def lines(facts: Facts, out: Path, data: Sequence[str]) -> list[str]:
    """Return the lines, what is wrong last but for the next command."""
    found = [*_what(facts), *_wrong(facts)]
    width = max(len(name) for name, _ in found)
    text = [f"{name:{width}}  {value}" for name, value in found]
    command = f"  simmim pretrain {shlex.join(data)}"
    more = []
    if min(facts.sides["height"][1], facts.sides["width"][1]) >= LARGE:
        more = ["or, where small structures matter, in tiles at their own scale:"]
        more += [f"{command} --tile 256"]
    return [*text, f"{'page':{width}}  {out}", "next:", command, *more]


def sizes(facts: Facts) -> str:
    """Smallest to largest sides in words."""
    (low, middle, high), (narrow, median, wide) = facts.sides["height"], facts.sides["width"]
    if (low, narrow) == (high, wide):
        return f"all {low}×{narrow} pixels (height × width)"
    return f"{low}–{high} × {narrow}–{wide} pixels (height × width), median {middle}×{median}"


def kinds(facts: Facts) -> str:
    """Formats, channels and types in words."""
    total = sum(facts.formats.values())
    forms = _shares(facts.formats, total)
    channels = _shares({f"{name} ch": n for name, n in facts.channels.items()}, total)
    return f"{forms} · {channels} · {_shares(facts.types, total)}"


def volume(size: int) -> str:
    """Bytes in words."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:,.1f} {name}"
    return f"{size / 1e3:,.0f} kB"


def balance(facts: Facts) -> str:
    """The classes and how even they are, in words; empty where there are none."""
    if not facts.classes:
        return ""
    ordered = sorted(facts.classes.items(), key=lambda item: item[1])
    (few, least), (many, most) = ordered[0], ordered[-1]
    words = f"{len(ordered):,}, from {least:,} ({few}) to {most:,} ({many})"
    return words + (f"; {facts.unlabelled:,} images without" if facts.unlabelled else "")


def scaling(facts: Facts) -> str:
    """How values become the encoder's input, in words; empty where no image could be read."""
    pixels = facts.pixels
    if not pixels:
        return ""
    moments = "; ".join(
        f"{name} {' '.join(f'{value:.3f}' for value in pixels[name])}" for name in ("mean", "std")
    )
    shifts = [
        f"(value − {low:g})/{high - low:g}" if low else f"value/{high:g}"
        for low, high in zip(pixels["low"], pixels["high"], strict=True)
    ]
    if len(set(shifts)) == 1:
        return f"{shifts[0]}, then {moments}"
    more = f", {len(shifts) - _SHOWN} more" if len(shifts) > _SHOWN else ""
    return f"{', '.join(shifts[:_SHOWN])}{more} by channel, then {moments}"


def _what(facts: Facts) -> list[tuple[str, str]]:
    sample = ""
    if facts.looked_at < facts.images:
        sample = f", of which {facts.looked_at:,} were looked at"
    rows = [
        ("images", f"{facts.images:,} · {volume(facts.bytes)}{sample}"),
        ("files", kinds(facts)),
        ("sizes", sizes(facts)),
    ]
    for kind, (low, high, words) in facts.values.items():
        rows.append(("values", f"{kind}: {low:g} … {high:g}, {words}"))
    if facts.pixels:
        rows.append(("scaled by", scaling(facts)))
    if facts.parts:
        rows.append(("parts", ", ".join(f"{name} {n:,}" for name, n in facts.parts.items())))
    rows += [("note", note) for note in facts.notes]
    rows.append(("classes", balance(facts) or "none found: no folders of classes, no --labels"))
    return rows


def _wrong(facts: Facts) -> list[tuple[str, str]]:
    rows = [("unreadable", _examples(facts.unreadable, list(facts.reasons.items())))]
    if facts.misfits:
        rows.append(("do not fit", f"{facts.misfits:,}: floats among integers, or other channels"))
    if facts.odd:
        odd = [(what, n) for what, (n, _) in facts.odd.items()]
        rows.append(("odd, but read", _examples(sum(n for _, n in odd), odd)))
    rows.append(("blank", f"{facts.blank[0]:,}"))
    same = f"{facts.exact:,} exact, {facts.near:,} near"
    if facts.conflicts:
        same += f"; {count(facts.conflicts, 'group')} with different classes among them"
    rows.append(("duplicates", same))
    if facts.leaked:
        told = (f"{n:,} of {facts.parts[part]:,} in {part}" for part, n in facts.leaked.items())
        rows.append(("leakage", f"{', '.join(told)} are in another part too"))
    elif facts.parts:
        rows.append(("leakage", "none found between the parts"))
    return rows


def _examples(total: int, found: list[tuple[str, int]]) -> str:
    if not total:
        return "0"
    most = sorted(found, key=lambda item: -item[1])
    words = "; ".join(f"{n:,} × {what}" for what, n in most[:_SHOWN])
    rest = len(most) - _SHOWN
    return f"{total:,}: {words}" + (f"; {count(rest, 'other reason')}" if rest > 0 else "")


def _shares(counts: dict[str, int], total: int) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    uneven = any(n < total / 100 for n in counts.values())
    return ", ".join(
        f"{name} {percent(n / total, 1 if uneven else 0)}" for name, n in counts.items()
    )
