"""The photos that come with simmim: clothes, from the phones of many people.

Alexey Grigorev's clothing dataset, CC0 1.0: 5,756 photos with a short side of 80 pixels. A part has
one of ten classes; the rest has no label that is used.
"""

import shutil
import tarfile
from importlib.resources import as_file, files
from pathlib import Path, PurePosixPath

from simmim.errors import DataError, ResourceError

ARCHIVE = "clothing-demo.tar"
PHOTOS = "photos"
"""Folder of the photos that may be pretrained on: train/CLASS, val/CLASS and unlabeled."""
TEST_PHOTOS = "test-photos"
"""Folder of the photos that nothing is ever trained on, one folder per class."""
ARCHIVE_BYTES = 40_000_000
"""What the unpacked photos take on the disk at most."""


def unpack(folder: Path) -> int:
    """Unpack the photos into ``folder``/photos and ``folder``/test-photos.

    The folder exists. Returns how many photos there are in all.

    The test photos lie apart, so that no command on the others can train on them by mistake. Their
    folder appears last, when all of both is there; what an earlier attempt left is replaced.

    Raises:
        DataError: The archive of this installation is missing or damaged.
        ResourceError: The disk is full, or not writable.
    """
    with as_file(files("simmim.data").joinpath(ARCHIVE)) as archive:
        try:
            return _extract_whole(archive, folder)
        except (FileNotFoundError, tarfile.TarError, EOFError) as error:
            raise DataError(
                f"the demo's photos ({archive}) are missing or damaged: {error}. Install simmim "
                "again."
            ) from error
        except OSError as error:
            raise ResourceError(
                f"the demo's photos cannot be unpacked into {folder}: {error}. Choose another disk "
                "with --out."
            ) from error


def _extract_whole(archive: Path, folder: Path) -> int:
    fresh = folder / ".tmp-photos"
    shutil.rmtree(fresh, ignore_errors=True)
    photos = extract(archive, fresh)
    for name in (PHOTOS, TEST_PHOTOS):
        shutil.rmtree(folder / name, ignore_errors=True)
        (fresh / name).rename(folder / name)
    fresh.rmdir()
    return photos


def extract(archive: Path, folder: Path) -> int:
    """Write the photos of ``archive`` below ``folder``; returns how many there are.

    Raises:
        tarfile.TarError: The archive is damaged, or holds a link, a device, or a file that would
            lie elsewhere. What came before it has been written.
    """
    photos = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            place = _place(member)
            if place is None:
                continue
            data = tar.extractfile(member)
            assert data is not None  # it is a file
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.read())
            photos += path.suffix == ".jpg"
    return photos


def _place(member: tarfile.TarInfo) -> PurePosixPath | None:
    """Where a member goes, relative to the folder; None for folders.

    Raises:
        tarfile.TarError: It is a link or a device, or would lie outside.
    """
    parts = PurePosixPath(member.name).parts
    if member.isdir():
        return None
    if not member.isfile() or parts[0] != "clothing" or ".." in parts:
        raise tarfile.TarError(f"{member.name} is not a photo of clothes")
    if parts[1] == "test":
        return PurePosixPath(TEST_PHOTOS, *parts[2:])
    return PurePosixPath(PHOTOS, *parts[1:])
