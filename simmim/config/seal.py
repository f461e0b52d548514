"""Small text files that end with the SHA-256 of themselves: damage and edits by hand are noticed.

In a YAML file it is a comment, in a JSON file the last key, `sha256`; what is hashed is every byte
before that line. It is compared before anything is parsed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simmim.errors import CheckpointError

_ENDS = {
    ".yaml": (b"# sha256 of all lines above: ", b"\n"),
    ".json": (b',\n "sha256": "', b'"\n}\n'),
}
"""What stands before and after the hash, by the ending of the file's name."""


class Sealed(NamedTuple):
    """A file that is as it was written.

    Attributes:
        text: All of it.
        sha256: The hash that it ends with, in hexadecimal.
    """

    text: str
    sha256: str


def seal_yaml(text: str) -> str:
    """Return the text of a YAML file with its hash."""
    return _seal(text, ".yaml")


def seal_json(document: Mapping[str, Any]) -> str:
    """Return the text of a JSON file that holds ``document``, and its hash."""
    return _seal(json.dumps(document, indent=1, default=str, ensure_ascii=False)[:-2], ".json")


def read_sealed(file: Path, advice: str, *, foreign: bool = False) -> Sealed:
    """Read a file that must be as it was written.

    Args:
        file: Its name tells what it is.
        advice: What to do otherwise, in a sentence.
        foreign: Take one without a hash too, as somebody else may have written it.

    Raises:
        CheckpointError: It is missing, damaged, or was changed.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}). {advice}") from error
    holds = seal_holds(data, file.suffix)
    if holds is False or (holds is None and not foreign):
        raise CheckpointError(
            f"{file} is damaged, or was changed by hand: it does not end with the sha256 of what "
            f"it holds. {advice}"
        )
    return Sealed(data.decode("utf-8", "replace"), _hash(data.rpartition(_ENDS[file.suffix][0])[0]))


def seal_holds(data: bytes, ending: str) -> bool | None:
    """Tell whether the hash that a file ends with is right; None: there is none.

    Args:
        data: All of the file.
        ending: Of its name: `.yaml` or `.json`.
    """
    before, after = _ENDS[ending]
    body, mark, end = data.rpartition(before)
    return end == _hash(body).encode() + after if mark else None


def _seal(text: str, ending: str) -> str:
    before, after = _ENDS[ending]
    found = _hash(text.encode("utf-8", "backslashreplace"))
    return f"{text}{before.decode()}{found}{after.decode()}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
