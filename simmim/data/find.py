"""Which images there are, and which of them are held out; light, so that misuse is told at once."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from simmim.errors import ConfigError, DataError

EXTENSIONS: frozenset[str] = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif"),
        *(".tif", ".tiff", ".bmp", ".dib", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
        *(".tga", ".qoi", ".npy"),
    }
)
"""Endings of the files that are taken for images, in lower case."""

ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".parquet"})


def find_images(root: Path) -> list[str]:
    """Return the sorted POSIX paths, relative to ``root``, of all images below it.

    Hidden files and folders are skipped. Links are followed, but no folder is entered twice, and
    one that is reached both directly and by a link is listed where it really is. For a ``root``
    that is itself an image file, the list holds its name (see ``folder_of``).

    Raises:
        DataError: No such folder, a folder that may not be read, or no image in it.
    """
    if not root.exists():
        raise DataError(f"there is no folder or image {root}{_nearest(root)}.")
    if root.is_file():
        if root.suffix.lower() not in EXTENSIONS:
            hint = "; unpack it and give the folder" if root.suffix.lower() in ARCHIVES else ""
            raise DataError(f"{root} is not an image file or a folder of images{hint}.")
        return [root.name]

    tree = _Tree()
    tree.walk(str(root), "")
    while tree.linked:
        # Real folders came first, so a link back into the tree finds them entered already.
        tree.walk(*tree.linked.pop(0))
    if not tree.images:
        raise DataError(f"{root} holds no images; {_found(tree.others)}.")
    return sorted(tree.images)


def folder_of(root: Path) -> Path:
    """Return the folder that the paths of ``find_images(root)`` are relative to."""
    return root.parent if root.is_file() else root


def split_holdout(paths: list[str], count: int | None) -> tuple[list[str], list[str]]:
    """Split ``paths`` into those trained on and those held out, both in the given order.

    The choice hangs on a hash of each relative path alone, so it survives a move of the folder,
    and images that are added later change little of it.

    Args:
        paths: Relative paths, distinct.
        count: Images to hold out; None: min(64, 5 %) from 200 images up, else none.

    Raises:
        ConfigError: Nothing would be left to train on.
    """
    if count is None:
        count = min(64, len(paths) // 20) if len(paths) >= 200 else 0
    if count >= len(paths):
        raise ConfigError(
            f"--holdout {count} leaves nothing to train on: there are {len(paths)} images. "
            f"Hold out fewer, or none with --holdout 0."
        )
    held = set(shuffled(paths)[:count])
    return [path for path in paths if path not in held], [path for path in paths if path in held]


def shuffled(paths: list[str]) -> list[str]:
    """Return ``paths`` in the order of a hash of each, whatever folders they lie in."""
    return sorted(paths, key=_rank)


def _rank(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()


@dataclass
class _Tree:
    """What a walk found; ``linked`` are the links to folders, with the prefix of their paths."""

    images: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    linked: list[tuple[str, str]] = field(default_factory=list)
    entered: set[tuple[int, int]] = field(default_factory=set)

    def walk(self, folder: str, prefix: str) -> None:
        """Add what lies below ``folder``, except through links to folders."""
        pending = [(folder, prefix)]
        while pending:
            folder, prefix = pending.pop()
            try:
                status = os.stat(folder)  # noqa: PTH116 - a Path per folder is slow on large trees
                identity = (status.st_dev, status.st_ino)
                if identity in self.entered:
                    continue
                self.entered.add(identity)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                raise DataError(f"cannot read the folder {folder}: {error.strerror}.") from error
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    below = (entry.path, f"{prefix}{entry.name}/")
                    (self.linked if entry.is_symlink() else pending).append(below)
                elif entry.is_file():
                    self._add(prefix, entry.name)

    def _add(self, prefix: str, name: str) -> None:
        ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if ending in EXTENSIONS:
            self.images.append(prefix + name)
        else:
            self.others[ending or "no ending"] += 1


def _found(others: Counter[str]) -> str:
    if not others:
        return "it is empty"
    listed = ", ".join(f"{count} × {ending}" for ending, count in others.most_common(5))
    hint = ". Unpack archives first" if ARCHIVES & set(others) else ""
    return f"found: {listed}{hint}"


def _nearest(root: Path) -> str:
    """Say which part of a missing path does exist."""
    for parent in root.absolute().parents:
        if parent.is_dir():
            return f"; {parent} exists, {root.absolute().relative_to(parent).parts[0]} is not in it"
    return ""
