"""Where images may be, and where simmim keeps what it can always make anew; light."""

import os
import re
from pathlib import Path

from simmim.errors import DataError


def cache_root() -> Path:
    """Return $SIMMIM_CACHE, or ~/.cache/simmim; whatever is in it may be deleted between runs."""
    given = os.environ.get("SIMMIM_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "simmim"


def is_elsewhere(where: str) -> bool:
    """Tell whether a source is a URL or the name of a data set, and no file or folder here."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", where)) and not Path(where).exists()


def check_exists(where: str | Path) -> None:
    """Raise ``DataError`` unless this is a file or a folder, naming what there is of its path."""
    path = Path(where)
    try:
        if path.is_file() or path.is_dir():
            return
        if path.exists():
            raise DataError(f"{where} is a pipe or a device, not a file or a folder.")
    except OSError as error:
        raise DataError(f"cannot read {where}: {error.strerror}.") from error
    near = ""
    for parent in path.absolute().parents:
        if parent.is_dir():
            missing = path.absolute().relative_to(parent).parts[0]
            near = f"; {parent} exists, {missing} is not in it"
            break
    raise DataError(f"there is no folder, archive, table or image {where}{near}.")
