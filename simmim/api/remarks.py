"""What should be known of images before anything is done with them, for the header of a command."""

from simmim.data.audit.survey import Survey
from simmim.data.labels import Labels
from simmim.data.sources.listing import Listing


def values(survey: Survey) -> tuple[str, str]:
    """Channels and depth of the images, and how they are scaled."""
    channels = survey.pixels.channels
    return "values", f"{channels} channel{'s' * (channels != 1)}, {survey.depth}"


def notes(
    listing: Listing,
    survey: Survey | None = None,
    labels: Labels | None = None,
    *,
    whole: bool = True,
) -> list[tuple[str, str]]:
    """What was left out, clipped, guessed or changed.

    Args:
        listing: The images.
        survey: What was found in them.
        labels: Their labels.
        whole: Whether all parts of a split are used alike.
    """
    said = [note for info in listing.infos for note in info.notes]
    if whole and any(index.parts and not index.classes for index in listing.indexes):
        said.append("all parts of the split are used")
    for each in (survey, labels):
        said += each.notes if each is not None else []
    return [("note", note) for note in said]
