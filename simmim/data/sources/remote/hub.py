"""Data sets by their names on the Hugging Face hub, through the library `datasets`."""

import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from simmim.data.sources.source import Entry, Source, SourceInfo
from simmim.data.sources.tables.parquet import ColumnSource
from simmim.errors import ConfigError, DataError

NAME = re.compile(r"hf-dataset:([^:@#]+)(?::([^@#]+))?(?:@([^#]+))?(?:#(.+))?")


def hub_source(where: str) -> "HubSource | None":
    """Return the source that ``hf-dataset:OWNER/NAME`` stands for."""
    return HubSource(where) if where.startswith("hf-dataset:") else None


class HubSource(Source):
    """Lists a data set that `datasets` downloads and keeps, as Arrow files, in its own cache."""

    def __init__(self, where: str) -> None:
        """Remember the name: ``hf-dataset:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]``.

        Raises:
            ConfigError: It is not such a name.
        """
        match = NAME.fullmatch(where)
        if match is None:
            raise ConfigError(
                f"{where} is no name of a data set: hf-dataset:OWNER/NAME is needed, perhaps with "
                f":CONFIG, @REVISION and #SPLIT after it."
            )
        self.where = where
        self._name, self._config, self._revision, self._split = match.groups()

    def state(self) -> list[list[Any]]:
        """See ``Source``; the library looks whether the data set has changed."""
        return self._source.state()

    def entries(self) -> Iterator[Entry]:
        """See ``Source``."""
        return self._source.entries()

    def info(self) -> SourceInfo:
        """See ``Source``."""
        return self._source.info()

    @cached_property
    def _source(self) -> ColumnSource:
        os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # it would report what is loaded
        try:
            import datasets
        except ImportError as error:
            raise ConfigError(
                f"{self.where} needs a package that is not there: pip install 'simmim[datasets]'."
            ) from error
        try:
            found: Any = datasets.load_dataset(
                self._name, self._config, revision=self._revision, split=self._split
            )
        except Exception as error:  # the library raises whatever it likes
            text = " ".join(str(error).split())[:400].rstrip(".")
            raise DataError(f"cannot load {self.where}: {text}.") from error
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
        return ColumnSource("arrow", self.where, root, files, note)
