"""`simmim pretrain`: from a folder of images to a run folder."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from simmim.api.health import lines
from simmim.api.session import Session
from simmim.api.start import begin, check_data, resume
from simmim.config.kinds import typed
from simmim.config.resolved import Resolved
from simmim.config.run import PretrainConfig
from simmim.config.target import CombinedTarget
from simmim.report import terminal
from simmim.report.health import FEW_STEPS, MORE_STEPS, health_of
from simmim.runs.record import read_run
from simmim.training.launch import leads

if TYPE_CHECKING:  # torch is imported inside the functions: config.yaml is on the disk before
    from simmim.data.audit.survey import Survey
    from simmim.data.loading.images import ImageSet
    from simmim.data.sources.listing import Listing
    from simmim.runs.images import RunImages
    from simmim.tasks.pretrain import PretrainTask
    from simmim.training.loop import Look
    from simmim.training.prepare import Training

_PROBED = {"cpu": 512}  # labelled images of the k-NN probe; 4096 on a GPU


def run_pretrain(config: PretrainConfig) -> Path:
    """Pretrain as ``config`` says; returns the run folder. See ``begin``."""
    check_data(config)
    return begin(Pretraining, config)


def run_resume(run: Path, changes: Mapping[str, object]) -> Path:
    """Go on with a run; see ``resume``."""
    return resume(Pretraining, run, changes)


class Pretraining(Session[PretrainConfig]):
    """A pretraining run.

    Attributes:
        listing: All images.
        images: Those that are trained on.
        held: Those that are held out.
        probe: Labelled images, for the k-NN probe.
        classes: Their classes.
    """

    settings = PretrainConfig
    listing: "Listing"
    images: "ImageSet"
    held: "ImageSet"
    training: "Training[PretrainConfig, PretrainTask]"
    probe: "ImageSet | None" = None
    classes: tuple[str, ...] = ()

    @classmethod
    def gather(cls, config: PretrainConfig) -> "Listing":
        """The images of a run, with a progress line where there are very many."""
        from simmim.data.sources.find import find_images

        stage = terminal.Stage(Console(quiet=not leads()))

        def found(number: int) -> None:
            stage.update(0, f"{number:,} images found")

        try:
            return find_images(*config.data, tile=config.tile, found=found)
        finally:
            stage.close()

    def choose(
        self, config: PretrainConfig, gathered: "Listing"
    ) -> "Training[PretrainConfig, PretrainTask]":
        """See ``Session``."""
        from simmim.api.remarks import notes
        from simmim.data.audit.survey import survey
        from simmim.data.labels import labels_of
        from simmim.data.loading.images import ImageSet
        from simmim.data.sources.find import split_holdout
        from simmim.tasks.pretrain import build_task
        from simmim.training.prepare import prepare

        self.listing = gathered
        labels = labels_of(gathered, config.labels)
        train, held = split_holdout(gathered, config.holdout)
        found = survey(gathered, channels=config.encoder.channels)
        pixels, begun = found.pixels, None
        if config.init_from is not None:
            from simmim.interop.continuing import begin

            begun = begin(config, pixels)
            config, pixels, self.licence = begun.config, begun.found.pixels, begun.licence
        self.images, self.held = ImageSet(train, pixels), ImageSet(held, pixels)
        if labels is not None:
            self.classes = tuple(labels.classes)
            chosen, classes = labels.sample(_PROBED.get(self.world.device.type, 4096))
            self.probe = ImageSet(chosen, pixels, classes)

        def build() -> "PretrainTask":
            task = build_task(config, pixels, self.world, train)
            if begun is not None:
                begun.apply(task.model)
            return task

        training = prepare(
            config,
            build,
            self.images,
            self.world,
            run=self.run,
            holdout=len(held),
            weights=config.weights,
            cache=config.cache,
        )
        if begun is not None and begun.why_rate is not None:
            training.resolved.why["lr"] = begun.why_rate
        self.found = self._found(found, config)
        if labels is not None:
            self.found.append(
                ("labels", f"{len(labels.classes)} classes by folder or list, for the k-NN probe "
                 "only")
            )  # fmt: skip
        if found.bad:
            from simmim.data.loading.quarantine import unreadable

            said = unreadable(dict(found.bad), found.sampled, "images looked at")
            self.found.append(("unreadable", said))
        self.found += notes(train, found, labels) + (begun.rows if begun else [])
        split = {"train": len(train), "holdout": len(held)}
        sources = [info.where for info in gathered.infos]
        self.facts = {"sources": sources, **found.as_dict(), **split}
        return training

    def _found(self, found: "Survey", config: PretrainConfig) -> list[tuple[str, str]]:
        """What was found: hardware, images, values, shares of sources."""
        from simmim.api.looks import MOST
        from simmim.api.remarks import values

        held = len(self.held)
        said = "progress is measured on some of them"
        if held:
            said = f"{held} held out to measure progress"
        if held > MOST:
            said = f"{held:,} held out, and progress measured on {MOST} of these"
        images = f"{found.images:,}"
        if config.tile:
            images += f" tiles of {config.tile} pixels"
        rows = [
            self.hardware(),
            ("images", f"{images} ({', '.join(found.formats)}); {said}"),
            ("sizes", _sizes(found.sizes)),
            values(found),
        ]
        infos = self.images.paths.infos
        if len(infos) > 1:
            counts = self.images.paths.counts()
            weights = config.weights or counts
            shares = [
                f"{info.where} {weight / sum(weights):.0%} ({number:,} images)"
                for info, weight, number in zip(infos, weights, counts, strict=True)
            ]
            rows.append(("sources", "; ".join(shares)))
        return rows

    def open(
        self, config: PretrainConfig, resolved: Resolved, saved: "RunImages"
    ) -> "Training[PretrainConfig, PretrainTask]":
        """See ``Session``."""
        from simmim.data.loading.images import ImageSet
        from simmim.runs.images import image_set
        from simmim.tasks.pretrain import build_task
        from simmim.training.prepare import reopen

        self.listing, pixels = saved.listing, resolved.pixels
        self.images = ImageSet(self.listing.without(saved.held), pixels)
        self.held = ImageSet(self.listing.select(saved.held), pixels)
        if saved.labelled:
            self.probe = image_set(self.listing, saved.labelled, pixels)
        self.classes = tuple(saved.classes)
        begun = None
        if self.newest is None and config.init_from is not None:
            from simmim.interop.continuing import begin

            begun = begin(config, pixels)
        encoder = replace(config.encoder, image_size=resolved.image_size)
        names = self.images.paths

        def build() -> "PretrainTask":
            task = build_task(replace(config, encoder=encoder), pixels, self.world, names)
            if begun is not None:
                begun.apply(task.model)
            return task

        return reopen(
            config, resolved, build, self.images, self.world, run=self.run, weights=config.weights
        )

    def save_lists(self) -> str:
        """See ``Session``."""
        from simmim.runs.images import save_images

        probe = () if self.probe is None else (self.probe,)
        classes = list(self.classes)
        return save_images(self.run, self.listing, self.held.paths, classes, labelled=probe)

    def looks(self) -> "list[Look]":
        """See ``Session``."""
        from simmim.api.looks import FeatureLook, HoldoutLook, KnnLook, Views
        from simmim.targets.pixels import Pixels

        task, precision = self.training.task, self.training.resolved.precision
        quarantine = self.training.stream.quarantine
        assert quarantine is not None
        # Without any held out, some are used that are trained on.
        held = self.held if len(self.held) else replace(self.images, paths=self.images.paths[:64])
        looks: list = []
        views = Views.held_out(task.model, held, self.world, quarantine)
        looks.append(FeatureLook(task.model, views, precision, self.world))
        pixels = task.model.target.within(Pixels)
        if pixels is None:  # tokens and features cannot be compared or shown
            target = typed(self.training.config.target)
            self.say(f"note: no explained detail and no pictures: {target} predicts no pixels")
        else:
            folder = self.run / "pictures"
            looks.append(
                HoldoutLook(task.model, pixels, views, precision, self.world, folder=folder)
            )
        if self.probe is not None:
            options = (len(self.classes), precision, self.world)
            looks.append(KnnLook(task.model, self.probe, *options, quarantine=quarantine))
        for said in dict.fromkeys(filter(None, (look.said for look in looks))):
            self.say(f"note: {said}")
        return looks

    def chosen(self) -> list[tuple[str, str, str]]:
        """See ``Session``."""
        config, resolved = self.training.config, self.training.resolved
        sampler = self.training.task.model.sampler
        units = sampler.units[0] * sampler.units[1]
        few = (
            [("few steps", f"{resolved.steps:,}", MORE_STEPS)] if resolved.steps < FEW_STEPS else []
        )
        weights, flags = {config.target.kind: 1.0}, []
        if isinstance(config.target, CombinedTarget):
            weights = config.target.weighed
            flags = ["usual, " * (config.target.weights is None) + "--target.weights"]
        weights |= {extra.kind: extra.weight for extra in config.extras}
        flags += [f"--{extra.kind}.weight" for extra in config.extras]
        losses = " + ".join(f"{weight:g} × {kind}" for kind, weight in weights.items())
        return [
            *few,
            ("recipe", config.recipe, f"simmim recipes show {config.recipe}"),
            ("cache", "on" if resolved.cache else "off", resolved.why.get("cache", "")),
            ("masked", f"{sampler.count} of {units}", f"--mask.ratio {config.mask.ratio:g}"),
            *([("loss", losses, ", ".join(flags))] if flags else []),
        ]

    @property
    def lineage(self) -> dict[str, object]:
        """See ``Session``."""
        config = self.training.config
        return {"recipe": config.recipe, "started_from": config.init_from or "random weights"}

    def finish(self) -> list[str]:
        """See ``Session``."""
        from simmim.report.html import run_report

        if not self.world.leads:
            return []
        return closing_lines(self.run, self.training.config, run_report(self.run))


def _sizes(sizes: dict[str, tuple[int, int, int]]) -> str:
    low, middle, high = zip(sizes["height"], sizes["width"], strict=True)
    if low == high:
        return f"{low[0]}×{low[1]} pixels, all of them"
    return (
        f"{middle[0]}×{middle[1]} pixels is the middle, "
        f"from {low[0]}×{low[1]} to {high[0]}×{high[1]}"
    )


def closing_lines(run: Path, config: PretrainConfig, report: Path) -> list[str]:
    """Return the lines.

    Args:
        run: The run folder.
        config: What was asked for.
        report: The page that was written.
    """
    # Other commands take images whole; tiles they know by the run's list of them.
    data = shlex.quote(str(run / "images-0.arrow") if config.tile else config.data[0])
    name = shlex.quote(str(run))
    return [
        *lines(health_of(read_run(run))),
        "",
        f"report      {report}",
        f"encoder     {run / 'encoder.safetensors'}",
        "next:",
        *([f"  simmim reconstruct {name} {data} --out grid.png"] if config.target.shown else []),
        f"  simmim probe {name} LABELLED_DATA",
        f"  simmim embed {name} {data} --out embeddings.parquet",
    ]
