"""Shards: what tells them from archives that are classes, and the index of `simmim shard`."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from simmim.data.parts import find_parts
from simmim.errors import DataError

INDEX = "index.json"
FORMAT = 1
NUMBER = re.compile(r"\d+")


def are_shards(names: Sequence[str]) -> bool:
    """Tell whether archives are pieces of one set, counted in their names: these are no classes.

    Unlike cat.tar and dog.tar, or n01440764.tar and n01443537.tar, which may be; and unlike
    train-0.tar and val-0.tar, which are parts of a split.
    """
    alike: dict[str, list[list[int]]] = {}
    for name in names:
        alike.setdefault(NUMBER.sub("#", name), []).append([int(n) for n in NUMBER.findall(name)])
    counted = any(len(numbers) > 1 and _count(numbers) for numbers in alike.values())
    return counted and not find_parts(dict.fromkeys(names, 1))


def _count(numbers: list[list[int]]) -> bool:
    columns = list(zip(*numbers, strict=True))
    return bool(columns) and all(max(each) - min(each) < 2 * len(each) for each in columns)


@dataclass(frozen=True)
class ShardIndex:
    """What is read of it: the names of the shards, and those of the classes in their order."""

    files: list[str]
    classes: list[str]


def read_index(content: bytes, where: str, there: Callable[[str], bool]) -> ShardIndex | None:
    """Read the index of a folder of shards; None where it is not one.

    Args:
        content: Of the file.
        where: The file, for messages.
        there: Tells whether a shard of this name lies beside it.

    Raises:
        DataError: It is of another format, or a shard that it names is missing.
    """
    try:
        index = json.loads(content)
        files = [PurePosixPath(shard["file"]).name for shard in index["shards"]]
    except (ValueError, KeyError, TypeError):
        return None
    if index.get("format") != FORMAT:
        raise DataError(
            f"{where} is of format {index.get('format')}, and this simmim reads format {FORMAT}. "
            "Use the simmim that wrote it."
        )
    missing = [file for file in files if not there(file)]
    if missing:
        raise DataError(
            f"{where} names {len(files)} shards, and {len(missing)} of them are missing, such as "
            f"{missing[0]}. Copy them too, or make them with simmim shard."
        )
    return ShardIndex(files, [str(name) for name in index.get("classes", [])])
