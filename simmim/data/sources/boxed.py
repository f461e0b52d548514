"""From what the user calls DATA to a source that tells the boxes of its images."""

from pathlib import Path

from simmim.data.sources.coco import CocoSource, coco_source
from simmim.data.sources.listing import Listing
from simmim.data.sources.places import check_exists, is_elsewhere
from simmim.data.sources.source import Source
from simmim.data.sources.voc import voc_source
from simmim.data.sources.yolo import yolo_source
from simmim.errors import DataError

KNOWN = (
    "COCO's json (instances_train.json), YOLO's data.yaml or a folder of its images, or Pascal "
    "VOC's folder with JPEGImages and Annotations"
)


def boxed_source(where: str) -> Source:
    """Tell what kind of boxes the user means.

    Raises:
        DataError: Nothing there tells boxes, or several files do.
    """
    check_exists(where)
    source = _boxed(where)
    if source is None and Path(where).suffix.lower() == ".json":
        raise DataError(
            f"{where} is a json of another kind: COCO's is an object with the lists images (each "
            "with a file_name), annotations (each with an image_id, a category_id and a bbox) and "
            "categories."
        )
    if source is None:
        raise DataError(f"{where} tells no boxes. Give {KNOWN}.")
    return source


def tells_boxes(where: str) -> bool:
    """Whether ``boxed_source`` knows what to make of it."""
    return not is_elsewhere(where) and _boxed(where) is not None


def _boxed(where: str) -> Source | None:
    path = Path(where)
    if path.is_dir():
        return yolo_source(where) or coco_of(path) or voc_source(where)
    if path.suffix.lower() == ".json":
        return coco_source(where)
    return yolo_source(where) or voc_source(where)


def not_there(images: Listing) -> list[int]:
    """Return the places of images that are told of, and whose files are not there."""
    places = []
    for row in range(len(images)):
        info = images.infos[images.source_of(row)]
        name = images.entry(row).name
        if not is_elsewhere(name) and not Path(info.parts[0], name).is_file():
            places.append(row)
    return places


def coco_of(folder: Path) -> CocoSource | None:
    """Return the json of a folder of images: in it, or called like it beside it."""
    beside = [folder.parent / "annotations" / f"instances_{folder.name}.json"]
    for files in (sorted(folder.glob("*.json")), sorted(folder.glob("annotations/*.json")), beside):
        found = [source for file in files if (source := coco_source(str(file))) is not None]
        if len(found) > 1:
            listed = ", ".join(str(source.file) for source in found)
            raise DataError(f"{folder} has several of COCO's files: name one of {listed} as DATA.")
        if found:
            return found[0]
    return None
