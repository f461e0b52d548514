"""The rows of the header that a run prints before step 0."""

from typing import TYPE_CHECKING

from simmim.data.loading.quarantine import unreadable
from simmim.machine import available_memory, cores
from simmim.report.words import duration
from simmim.runs.folder import environment

if TYPE_CHECKING:
    from simmim.data.audit.survey import Survey
    from simmim.data.labels import Labels
    from simmim.data.sources.listing import Listing
    from simmim.tasks.pretrain import Prepared
    from simmim.training.world import World


def found_rows(
    found: "Survey", prepared: "Prepared", labels: "Labels | None"
) -> list[tuple[str, str]]:
    """What was found: hardware, images, values, labels."""
    import torch

    facts = environment()
    memory = f"{available_memory(torch.device('cpu')) / 1e9:.0f} GB of memory free"
    hardware = facts["gpu"] or f"{facts['cpu']}, {cores()} cores"
    kinds = ", ".join(found.formats)
    tile = prepared.config.tile
    images = f"{found.images:,} tiles of {tile} pixels" if tile else f"{found.images:,}"
    rows = [
        ("hardware", f"{hardware}, {memory}"),
        ("images", f"{images} ({kinds}); {_held(prepared.resolved.holdout)}"),
        ("sizes", _sizes(found.sizes)),
        values(found),
    ]
    rows += _sources(prepared)
    if labels is not None:
        count = len(labels.classes)
        rows.append(("labels", f"{count} classes by folder or list, for the k-NN probe only"))
    if found.bad:
        said = unreadable(dict(found.bad), found.sampled, "images looked at")
        rows.append(("unreadable", said))
    return rows + notes(prepared.images.train, found, labels)


def values(survey: "Survey") -> tuple[str, str]:
    """Channels and depth of the images, and how they are scaled."""
    channels = survey.pixels.channels
    return "values", f"{channels} channel{'s' * (channels != 1)}, {survey.depth}"


def notes(
    listing: "Listing", survey: "Survey | None" = None, labels: "Labels | None" = None
) -> list[tuple[str, str]]:
    """What was left out, clipped, guessed or changed, for the header of any command."""
    said = [note for info in listing.infos for note in info.notes]
    for each in (survey, labels):
        said += each.notes if each is not None else []
    return [("note", note) for note in said]


def _held(count: int) -> str:
    from simmim.api.looks import MOST

    if not count:
        return "progress is measured on some of them"
    if count <= MOST:
        return f"{count} held out to measure progress"
    return f"{count:,} held out, and progress measured on {MOST} of these"


def _sources(prepared: "Prepared") -> list[tuple[str, str]]:
    """What should be known of the sources, and their shares."""
    images, rows = prepared.images, []
    infos = images.train.infos
    if len(infos) > 1:
        counts = images.train.counts()
        weights = images.weights or counts
        shares = [
            f"{info.where} {weight / sum(weights):.0%} ({count:,} images)"
            for info, weight, count in zip(infos, weights, counts, strict=True)
        ]
        rows.append(("sources", "; ".join(shares)))
    return rows


def _sizes(sizes: dict[str, tuple[int, int, int]]) -> str:
    low, middle, high = zip(sizes["height"], sizes["width"], strict=True)
    if low == high:
        return f"{low[0]}×{low[1]} pixels, all of them"
    return (
        f"{middle[0]}×{middle[1]} pixels is the middle, "
        f"from {low[0]}×{low[1]} to {high[0]}×{high[1]}"
    )


def _time(prepared: "Prepared") -> tuple[str, str]:
    """How long the run takes, and how that is known."""
    plan = prepared.plan
    if plan.budget:
        return duration(plan.budget), (
            "from the first step on, pictures and saves included; the steps for it are counted "
            "anew as it is known what they take"
        )
    seconds = prepared.seconds_per_image * plan.batch_size * plan.steps
    return f"about {duration(seconds)}", "by a short rehearsal; pictures and saves beside"


def chosen_rows(prepared: "Prepared", world: "World") -> list[tuple[str, str, str]]:
    """What was chosen, and why."""
    config, resolved, model = prepared.config, prepared.resolved, prepared.task.model
    why = resolved.why
    encoder, sampler = model.encoder, model.sampler
    parameters = sum(p.numel() for p in encoder.parameters()) / 1e6
    height, width = resolved.image_size
    units = sampler.units[0] * sampler.units[1]
    share = resolved.batch_size // world.ranks
    pieces = -(-share // resolved.micro_batch)
    rate = config.optim.peak(resolved.batch_size)
    epochs = resolved.steps * resolved.batch_size / resolved.images
    return [
        ("recipe", config.recipe, f"simmim recipes show {config.recipe}"),
        ("encoder", encoder.model, f"{parameters:.1f} M parameters"),
        ("image", f"{height}×{width}", f"patches of {encoder.patch} pixels"),
        ("cache", "on" if resolved.cache else "off", why.get("cache", "")),
        ("masked", f"{sampler.count} of {units}", f"--mask.ratio {config.mask.ratio:g}"),
        ("batch", f"{resolved.batch_size}", why["batch_size"]),
        (
            "micro-batch",
            f"{resolved.micro_batch} × {pieces}" + (f" × {world.ranks}" if world.ranks > 1 else ""),
            why["micro_batch"],
        ),
        ("length", f"{resolved.steps:,} steps, {epochs:.1f} epochs", why["steps"]),
        ("time", *_time(prepared)),
        ("rate", f"{rate:.2g}", f"{config.optim.lr:.2g} per 256 images, {why['lr']}"),
        ("precision", resolved.precision, why["precision"]),
        ("threads", f"{resolved.threads}", why["threads"]),
    ]
