"""`simmim finetune`: from labelled images and an encoder to a head on it, in a run folder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from simmim.api.session import Session
from simmim.api.start import begin, check_data, resume
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import FinetuneConfig
from simmim.config.resolved import Resolved
from simmim.errors import ConfigError, SimmimError
from simmim.report.words import count
from simmim.runs.files import read_lines

if TYPE_CHECKING:  # torch is imported inside the functions: config.yaml is on the disk before
    from simmim.api.tasks.task import AnyTask, Labelled
    from simmim.data.audit.survey import Survey
    from simmim.data.loading.images import ImageSet
    from simmim.data.loading.quarantine import Quarantine
    from simmim.interop.checkpoint import ModelCheckpoint
    from simmim.models.encoder import Encoder
    from simmim.runs.images import RunImages
    from simmim.training.loop import Look
    from simmim.training.prepare import Training
    from simmim.training.task import Task


def run_finetune(config: FinetuneConfig) -> Path:
    """Fine-tune as ``config`` says; returns the run folder. See ``begin``."""
    check_data(config)
    if config.init_from != "none" and config.encoder.model != EncoderConfig.model:
        raise ConfigError(
            f"--model names an encoder to start from scratch, and --from {config.init_from} "
            "already says which encoder. Give one of them (--from none --model NAME)."
        )
    return begin(Finetuning, config)


def run_resume(run: Path, changes: Mapping[str, object]) -> Path:
    """Go on with a fine-tuning; see ``resume``."""
    return resume(Finetuning, run, changes)


@dataclass
class Gathered:
    """What a fine-tuning is on.

    Attributes:
        found: The checkpoint that it starts from, fitted to the images; None: random weights.
        survey: What the images are like.
        labelled: What is known of them.
        rows: What should be known of the encoder and of the images' values, name and value.
    """

    found: "ModelCheckpoint | None"
    survey: "Survey"
    labelled: "Labelled"
    rows: list[tuple[str, str]]


class Finetuning(Session[FinetuneConfig]):
    """A fine-tuning run, of any task: what is the task's own, its ``LabelledTask`` knows.

    Attributes:
        kind: The task.
        labelled: What is learned from and measured on.
    """

    settings = FinetuneConfig
    training: "Training[FinetuneConfig, Task]"
    kind: "AnyTask"
    labelled: "Labelled"

    @classmethod
    def gather(cls, config: FinetuneConfig) -> Gathered:
        """Open the encoder and look at the images; what should be known of them is told later."""
        from simmim.api.encoders import depth, list_images
        from simmim.api.tasks.build import labelled_task
        from simmim.data.audit.survey import survey
        from simmim.interop.load import scaled_for
        from simmim.interop.open import describe, open_source
        from simmim.interop.resize import resize

        kind = labelled_task(config.task)
        images, found = list_images(config.sources, kind.annotations), None
        rows: list[tuple[str, str]] = []
        if config.init_from == "none":
            seen = survey(images, channels=config.encoder.channels)
        else:
            found = open_source(config.init_from)
            seen = scaled_for(found.pixels, images, adapt=True)
            rows += [] if found.own else describe(found)
            patch = config.encoder.patch_size or found.patch
            size = config.encoder.image_size or config.usual_size(found.image_size, patch)
            found, changes = resize(found, size, patch, seen.pixels)
            rows += changes
        labelled = kind.gather(config, seen.pixels)
        return Gathered(found, seen, labelled, rows + depth(seen))

    def choose(
        self, config: FinetuneConfig, gathered: Gathered
    ) -> "Training[FinetuneConfig, Task]":
        """See ``Session``."""
        from simmim.api.tasks.build import labelled_task
        from simmim.data.loading.quarantine import Quarantine
        from simmim.training.prepare import prepare

        self.kind, labelled = labelled_task(config.task), gathered.labelled
        start, size = None, _image_size(config)
        if gathered.found is not None:
            config, start = _begin_from(config, gathered.found)
            size = start.image_size
            self.licence = gathered.found.licence or "not known: that of what it started from"

        config = self.kind.fit(config, size, labelled)
        names = labelled.train.paths
        quarantine = Quarantine(self.run / "quarantine.jsonl", config.max_bad, names)
        val, unread = self._measurable(config, labelled.val, size, quarantine)
        self.labelled = labelled = replace(labelled, val=val)
        classes = labelled.classes
        training = prepare(
            config,
            partial(self._begin, config, start, size),
            labelled.train,
            self.world,
            run=self.run,
            holdout=len(val),
            groups=self.kind.groups(config, labelled),
            quarantine=quarantine,
        )
        self._check_step(config, training.resolved)
        self.found = [
            self.hardware(),
            ("images", f"{len(labelled.train):,} to learn from, {len(val):,} to measure on"),
            *([("classes", f"{len(classes)}: {', '.join(classes)}")] if classes else []),
            *gathered.rows,
            *labelled.rows,
            *([("unreadable", unread)] if unread else []),
        ]
        split = {"train": len(labelled.train), "holdout": len(val)}
        self.facts = {"sources": config.sources, **gathered.survey.as_dict(), **split}
        return training

    def _measurable(
        self,
        config: FinetuneConfig,
        val: "ImageSet",
        size: tuple[int, int],
        quarantine: "Quarantine",
    ) -> "tuple[ImageSet, str]":
        """Read all images that are to be measured on once, in the first process.

        Unreadable ones go into the quarantine. Those of DATA are judged together with the training
        images, others for themselves.

        Returns:
            The images that can be read, and words about the others; empty: there are none.

        Raises:
            DataError: None of them can be read.
            TrainingError: More of them cannot be read than is allowed.
        """
        from simmim.data.loading.loader import readable
        from simmim.data.loading.quarantine import Quarantine, unreadable
        from simmim.machine import pick_workers

        bad: dict[str, str] = {}
        found: tuple[ImageSet, str] | SimmimError | None = None
        if self.world.leads:
            workers = pick_workers(config.system.workers, self.world.ranks)
            try:
                kept = readable(val, size, bad=bad, workers=workers)
                told = unreadable(bad, len(val), "images to measure on") if bad else ""
                if config.val is not None:
                    bad = {f"{val.paths.where}: {path}": reason for path, reason in bad.items()}
                    quarantine = Quarantine(quarantine.file, config.max_bad, ())
                quarantine.looked_at(val.paths, bad)
                found = kept, told
            except SimmimError as error:
                found = error
        self.world.meet()
        found = self.world.share(found)
        if isinstance(found, SimmimError):
            self.world.fail(found)
        assert found is not None
        return found

    def _begin(
        self, config: FinetuneConfig, start: "Encoder | None", size: tuple[int, int]
    ) -> "Task":
        from simmim.tasks.freeze import trainable

        task = self.kind.begin(config, start, size, self.labelled, self.world)
        return trainable(task, config)

    def _check_step(self, config: FinetuneConfig, resolved: Resolved) -> None:
        share = resolved.batch_size // self.world.ranks
        self.kind.check_step(config, (share, min(share, resolved.micro_batch)))

    def open(
        self, config: FinetuneConfig, resolved: Resolved, saved: "RunImages"
    ) -> "Training[FinetuneConfig, Task]":
        """See ``Session``."""
        from simmim.api.tasks.build import labelled_task
        from simmim.api.tasks.task import Labelled
        from simmim.interop.open import open_source
        from simmim.interop.resize import resize
        from simmim.tasks.freeze import trainable
        from simmim.training.prepare import reopen

        pixels, size = resolved.pixels, resolved.image_size
        self.kind = labelled_task(config.task)
        self.labelled = Labelled(
            train=saved.train(pixels, self.kind.annotations),
            val=saved.val(pixels, self.kind.annotations),
            classes=saved.classes,
            facts=saved.facts,
        )
        start = None
        if self.newest is None and config.init_from != "none":
            patch = config.encoder.patch_size
            assert patch is not None  # written down when the run was prepared
            found, _ = resize(open_source(config.init_from), size, patch, pixels)
            start = _begin_from(config, found)[1]

        def build() -> "Task":
            if self.newest is None:
                return self._begin(config, start, size)
            task = self.kind.build(config, size, self.labelled, self.world)
            return trainable(task, config)

        self._check_step(config, resolved)
        groups, train = self.kind.groups(config, self.labelled), self.labelled.train
        return reopen(config, resolved, build, train, self.world, run=self.run, groups=groups)

    def save_lists(self) -> str:
        """See ``Session``."""
        from simmim.runs.images import save_images

        labelled, train, val = self.labelled, self.labelled.train, self.labelled.val
        files = [[index.file for index in each.paths.indexes] for each in (train, val)]
        own = self.training.config.val is None and files[0] == files[1]
        return save_images(
            self.run,
            train.paths,
            val.paths if own else train.paths[:0],
            labelled.classes,
            labelled=[train, val] if own else [train],
            others=None if own else val,
            facts=labelled.facts,
        )

    def looks(self) -> "list[Look]":
        """See ``Session``."""
        from simmim.machine import pick_workers

        task, val, world = self.training.task, self.labelled.val, self.world
        workers = pick_workers(self.training.config.system.workers, world.ranks)

        def measure(_: int) -> dict[str, float]:
            return self.kind.measure(task, val, world=world, workers=workers)

        return [measure]

    def chosen(self) -> list[tuple[str, str, str]]:
        """See ``Session``."""
        from simmim.tasks.freeze import frozen_share

        config, frozen = self.training.config, frozen_share(self.training.task)
        layers = f"{config.optim.layer_decay:g} a block, from the head down"
        return [
            ("start", config.init_from, "--from"),
            ("layer decay", layers, "--optim.layer-decay"),
            *self.kind.regularisation(config),
            *([("frozen", frozen, f"--freeze {config.freeze}")] if config.freeze else []),
            *([("frozen", frozen, f"--lora {config.lora}")] if config.lora else []),
        ]

    @property
    def lineage(self) -> dict[str, object]:
        """See ``Session``."""
        return {"fine_tuned_from": self.training.config.init_from}

    def finish(self) -> list[str]:
        """See ``Session``."""
        from simmim.report.html import run_report

        config, task = self.training.config, self.training.task
        results = self.kind.finish(config, task, self.labelled, run=self.run, world=self.world)
        if results is None:
            return []
        report = run_report(self.run)
        bad = self.run / "quarantine.jsonl"
        number = len(read_lines(bad)[0]) if bad.exists() else 0
        files = [("report", report), *results.files, ("encoder", self.run / "encoder.safetensors")]
        return [
            *results.scores,
            *([f"unreadable         {count(number, 'image')}, all in {bad}"] if number else []),
            *(f"{name:<18} {path}" for name, path in files),
            "next:",
            *(f"  {command}" for command in results.next),
        ]


def _image_size(config: FinetuneConfig) -> tuple[int, int]:
    """That of an encoder from scratch."""
    from simmim.config.models import find

    known = find(config.encoder.model)
    side = known.size if known else 224
    patch = config.encoder.patch_size or (known.patch if known else 16)
    return config.encoder.image_size or config.usual_size((side, side), patch)


def _begin_from(
    config: FinetuneConfig, found: "ModelCheckpoint"
) -> "tuple[FinetuneConfig, Encoder]":
    """The config with the encoder of a checkpoint in it, and that encoder."""
    from simmim.interop.load import encoder_from
    from simmim.models.build import describe_encoder

    encoder = encoder_from(found)
    described = describe_encoder(encoder, config.encoder.drop_path)
    return replace(config, encoder=described), encoder
