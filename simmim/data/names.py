"""Names of files as any file, terminal and program takes them; standard library only."""

import re

_ODD = re.compile("[\udc80-\udcff]+|[\ud800-\udfff]")


def plain(name: str) -> str:
    r"""A name in which bytes that are no UTF-8 are escaped: ``caf\xe9.jpg``."""
    return _ODD.sub(_escaped, name)


def _escaped(match: re.Match[str]) -> str:
    try:  # bytes that Python could not decode, as its locale is no UTF-8 or they are none
        return match[0].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return match[0].encode("ascii", "backslashreplace").decode()
