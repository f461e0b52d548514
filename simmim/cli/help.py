"""What ``simmim COMMAND --help`` prints: how it is called, then its flags, part by part."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import MISSING
from functools import partial
from itertools import groupby
from textwrap import fill

from simmim.cli.flags import Flag, metavar, show

_INDENT = 24
"""Where the text of a flag begins; beside its name where that is shorter."""


def usage(command: str, flags: Sequence[Flag]) -> str:
    """How a command is called, with what must or may be given by its place."""
    must = [_written(flag) for flag in flags if flag.default is MISSING]
    may = [f"[{flag.shown}]" for flag in flags if flag.positional and flag.default is not MISSING]
    return " ".join([f"simmim {command}", *must, *may])


def help_of(command: str, heading: str, flags: Sequence[Flag]) -> str:
    """The help of a command, as wide as the terminal; indented lines of its heading stay whole."""
    wrap = partial(fill, width=max(shutil.get_terminal_size().columns, 60), break_on_hyphens=False)
    flags = sorted(flags, key=lambda flag: (bool(flag.part), not flag.positional))
    more = "" if all(flag.positional for flag in flags) else " [--FLAG VALUE ...]"
    said = re.sub(r"(?<=\S)\n(?=\S)", " ", heading).splitlines()
    lines = [f"usage: {usage(command, flags)}{more}", ""]
    lines += [line if line.startswith(" ") else wrap(line) for line in said]
    for part, group in groupby(flags, lambda flag: flag.part):
        lines += ["", wrap(part)] if part else [""]
        for flag in group:
            name, blank = f"  {_written(flag)}  ".ljust(_INDENT), " " * _INDENT
            if len(name) > _INDENT:
                lines.append(name.rstrip())
                name = blank
            text = f"{flag.help} {_hint(flag)}"
            lines.append(wrap(text, initial_indent=name, subsequent_indent=blank))
    return "\n".join(lines).replace("\xa0", " ")


def _written(flag: Flag) -> str:
    return flag.shown if flag.positional else f"{flag.shown} {metavar(flag)}"


def _hint(flag: Flag) -> str:
    """The default, unless the help has said it in words; its spaces do not break."""
    told = "default" in flag.help.lower()
    if flag.default is MISSING:
        return "(required)"
    if flag.default in ((), {}) or (told and flag.default is None):
        return ""
    return f"({'here' if told else 'default'}:\xa0{show(flag.default)})"
