"""Names of files as any file, terminal and program takes them; standard library only."""

import re

_ODD = re.compile("[\ud800-\udfff]")


def plain(name: str) -> str:
    r"""A name in which bytes that are no UTF-8 are escaped: ``caf\xe9.jpg``."""
    return _ODD.sub(_escaped, name)


def _escaped(match: re.Match[str]) -> str:
    sign = match[0]
    if "\udc80" <= sign <= "\udcff":  # a byte that Python could not decode
        return f"\\x{ord(sign) & 0xFF:02x}"
    return f"\\u{ord(sign):04x}"
