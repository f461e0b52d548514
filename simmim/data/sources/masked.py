"""From what the user calls DATA to a source that tells the label maps of its images."""

from pathlib import Path

from simmim.data.sources.boxed import coco_of
from simmim.data.sources.coco import coco_source
from simmim.data.sources.coco_masks import CocoMasks
from simmim.data.sources.folder import FolderSource
from simmim.data.sources.open import source_of
from simmim.data.sources.pairs import PairsSource
from simmim.data.sources.places import check_exists, is_elsewhere
from simmim.data.sources.source import Source
from simmim.errors import DataError


def masked_source(where: str) -> Source:
    """Tell what kind of masks the user means; what has none is told as without this.

    Raises:
        DataError: A json of another kind than COCO's, or a folder with several of COCO's.
    """
    if is_elsewhere(where):
        return source_of(where)
    check_exists(where)
    path = Path(where)
    if path.suffix.lower() == ".json":
        coco = coco_source(where)
        if coco is None:
            raise DataError(
                f"{where} is a json of another kind: COCO's is an object with the lists images "
                "(each with a file_name), annotations (each with an image_id, a category_id and a "
                "segmentation) and categories."
            )
        return CocoMasks(coco.file)
    source = source_of(where)
    if path.is_dir() and isinstance(source, FolderSource) and not isinstance(source, PairsSource):
        coco = coco_of(path)
        source = source if coco is None else CocoMasks(coco.file)
    return source
