"""Embeddings in a file that other tools read."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simmim.data.names import plain
from simmim.errors import ConfigError, ResourceError
from simmim.evaluate.features import FeatureTable
from simmim.runs.files import check_space, sync

if TYPE_CHECKING:
    import pyarrow as pa


def write_embeddings(table: FeatureTable, out: Path, *, classes: list[str] | None = None) -> Path:
    """Write one row per image, as a whole or not at all.

    ``.parquet`` has the columns ``path``, ``label`` (the class's name, where there are labels; null
    for an image without) and ``embedding`` (a list of D float32); ``.npz`` the arrays ``paths``,
    ``features`` and ``labels`` (class indices, -1 for none) with ``classes``. Bytes of a path that
    are no UTF-8 are escaped.

    Args:
        table: What to write.
        out: Ends in .parquet or .npz; its folder is made.
        classes: Names of the classes; without them labels are written as numbers.

    Returns:
        ``out``.

    Raises:
        ConfigError: Another ending, or the file exists.
        ResourceError: It cannot be written.
    """
    if out.suffix not in (".parquet", ".npz"):
        raise ConfigError(f"embeddings go to a .parquet or an .npz file, not {out}.")
    if out.exists():
        raise ConfigError(f"{out} exists and is not overwritten; choose another --out.")
    check_space(out.parent, table.features.nbytes, f"{out}, {len(table.paths)} embeddings,")
    temporary = out.with_name(f".tmp-{os.getpid()}-{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".parquet":
            _write_parquet(table, temporary, classes)
        else:
            _write_npz(table, temporary, classes)
        sync(temporary)
        temporary.replace(out)
    except OSError as error:
        raise ResourceError(f"{out} could not be written: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return out


def embedding_table(table: FeatureTable, classes: list[str] | None) -> "pa.Table":
    """The rows of ``.parquet``; see ``write_embeddings``."""
    import pyarrow as pa  # slow to import

    values = pa.array(np.ascontiguousarray(table.features, np.float32).reshape(-1))
    columns: dict[str, pa.Array] = {"path": pa.array(list(map(plain, table.paths)), pa.string())}
    if table.labels is not None:
        names = table.labels
        if classes is not None:
            names = [None if label < 0 else classes[label] for label in table.labels]
        columns["label"] = pa.array(names)
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, table.features.shape[1])
    return pa.table(columns)


def _write_parquet(table: FeatureTable, path: Path, classes: list[str] | None) -> None:
    import pyarrow.parquet as pq  # slow to import

    with path.open("wb") as file:  # a name that is no UTF-8 cannot be given to Arrow
        pq.write_table(embedding_table(table, classes), file)


def _write_npz(table: FeatureTable, path: Path, classes: list[str] | None) -> None:
    arrays: dict[str, Any] = {
        "paths": np.array(list(map(plain, table.paths))),
        "features": table.features,
    }
    if table.labels is not None:
        arrays["labels"] = table.labels
    if classes is not None:
        arrays["classes"] = np.array(classes)
    with path.open("wb") as file:
        np.savez(file, **arrays)
