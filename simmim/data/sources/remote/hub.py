"""Data sets by their names on the Hugging Face hub, through the library `datasets`."""

import os
import re
from pathlib import Path
from typing import Any

from simmim.data.sources.tables.parquet import ColumnSource
from simmim.errors import ConfigError, DataError

NAME = re.compile(r"hf-dataset:([^:@#]+)(?::([^@#]+))?(?:@([^#]+))?(?:#(.+))?")


def hub_source(where: str) -> ColumnSource | None:
    """Return the source that ``hf-dataset:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]`` stands for.

    `datasets` downloads it, keeps it as Arrow files in its own cache, and looks each time whether
    it has changed.

    Raises:
        ConfigError: It is not such a name, or the library is not there.
        DataError: It cannot be loaded.
    """
    if not where.startswith("hf-dataset:"):
        return None
    match = NAME.fullmatch(where)
    if match is None:
        raise ConfigError(
            f"{where} is no name of a data set: hf-dataset:OWNER/NAME is needed, perhaps with "
            f":CONFIG, @REVISION and #SPLIT after it."
        )
    name, config, revision, split = match.groups()
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # it would report what is loaded
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{where} needs a package that is not there: pip install 'simmim[datasets]'."
        ) from error
    try:
        found: Any = datasets.load_dataset(name, config, revision=revision, split=split)
    except Exception as error:  # the library raises whatever it likes
        text = " ".join(str(error).split())[:400].rstrip(".")
        raise DataError(f"cannot load {where}: {text}.") from error
    note = ""
    if isinstance(found, dict):
        splits = list(found)
        chosen = "train" if "train" in found else splits[0]
        found = found[chosen]
        others = ", ".join(name for name in splits if name != chosen)
        if others:
            note = f"of its splits only {chosen} is used; another is named by #SPLIT: {others}"
    files = [Path(each["filename"]) for each in found.cache_files]
    root = Path(*files[0].parts[:-1]) if files else Path()
    return ColumnSource("arrow", where, root, files, note)
