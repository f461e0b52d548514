"""The index that `simmim shard` writes beside its shards."""

import json
from dataclasses import dataclass
from pathlib import Path

from simmim.errors import DataError

INDEX = "index.json"
FORMAT = 1


@dataclass(frozen=True)
class ShardIndex:
    """What is read of it: the shards, and the names of the classes in their order."""

    files: list[Path]
    classes: list[str]


def read_index(folder: Path) -> ShardIndex | None:
    """Read the index of a folder of shards; None where it has none.

    Raises:
        DataError: It is of another format, or a shard that it names is missing.
    """
    file = folder / INDEX
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        names = [shard["file"] for shard in index["shards"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if index.get("format") != FORMAT:
        raise DataError(
            f"{file} is of format {index.get('format')}, and this simmim reads format {FORMAT}. "
            "Use the simmim that wrote it."
        )
    files = [folder / Path(name).name for name in names]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise DataError(
            f"{file} names {len(files)} shards, and {len(missing)} of them are missing, such as "
            f"{missing[0].name}. Copy them too, or make them with simmim shard."
        )
    return ShardIndex(files, [str(name) for name in index.get("classes", [])])
