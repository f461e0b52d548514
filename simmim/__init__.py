"""Pretrain a vision encoder on your own unlabelled images by masked image modelling, and use it.

>>> import simmim
>>> run = simmim.pretrain("photos/", model="vit_tiny_patch16_224", image_size=96, epochs=6)
>>> encoder = simmim.load(run)
>>> features = encoder(encoder.transform("photos/cat.jpg")[None])
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from simmim.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ResourceError,
    SimmimError,
    TrainingError,
)

if TYPE_CHECKING:
    from simmim.interop.load import LoadedEncoder
    from simmim.models.mim import MaskedImageModel
    from simmim.tasks.classifier import Classifier
    from simmim.tasks.detector import Detector
    from simmim.tasks.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ResourceError",
    "SimmimError",
    "TrainingError",
    "finetune",
    "load",
    "pretrain",
    "resume",
]


def pretrain(data: Any, *, recipe: str = "simmim", **settings: Any) -> Path:
    """Pretrain an encoder on images, without labels.

    Args:
        data: A folder, archive, table or URL (docs/sources.md), or a list of these; or Python
            data: a sequence of arrays, PIL images or paths, a torch data set, any iterable.
        recipe: `simmim`, `simmim-paper`, `simmim-paper-swin` or `mae`.
        settings: What differs from the recipe, by the names of the command line's flags with
            underscores: ``model``, ``image_size`` (one side, or height and width), ``epochs``,
            ``budget``, ``batch_size``, ``out``, ``seed``, ``workers``, …; ``from_`` for `--from`;
            for a part a dict, as in ``mask={"ratio": 0.6}``.

    Returns:
        The run folder.

    Raises:
        SimmimError: See ``simmim.errors``.
    """
    from simmim.api.pretrain import run_pretrain
    from simmim.api.settings import configure, recipe_named
    from simmim.training.launch import share_cores

    share_cores()
    return run_pretrain(configure(data, recipe_named(recipe), settings))


def finetune(
    data: Any,
    *,
    from_: str | Path,
    task: Any = "classify",
    preset: str | None = None,
    **settings: Any,
) -> Path:
    """Train an encoder and a new head on labelled images.

    Args:
        data: As for ``pretrain``; a folder with one folder per class, or any with ``labels``.
        from_: Weights to begin with: a run, a file, a folder, ``timm:NAME``, ``hf:REPO``; "none":
            from scratch.
        task: What the new head answers: ``"classify"``, ``"multilabel"``, ``"regress"``,
            ``"segment"`` or ``"detect"``, or with its settings
            ``{"kind": "classify", "smoothing": 0}``.
        preset: Published settings to begin with, of the same task; ``simmim recipes`` lists them.
        settings: As for ``pretrain``: ``val``, ``labels``, ``image_size``, ``epochs``, ``out``,
            ``optim={"lr": 5e-4, "layer_decay": 0.75}``, …

    Returns:
        The run folder; ``simmim.load(run, head=True)`` is the classifier.

    Raises:
        SimmimError: See ``simmim.errors``.
    """
    from simmim.api.finetune import run_finetune
    from simmim.api.settings import configure
    from simmim.config.finetune import FINETUNINGS
    from simmim.config.kinds import pick
    from simmim.config.presets import preset_named
    from simmim.training.launch import share_cores

    share_cores()
    given = {"kind": task} if isinstance(task, str) else dict(task)
    kind = pick("task", given.pop("kind", "classify"), FINETUNINGS)
    if preset is None:
        start = FINETUNINGS[kind](data=(), init_from=str(from_))
    else:
        start = preset_named(preset, kind, str(from_))
    return run_finetune(configure(data, start, {**settings, "task": given}))


def resume(run: str | Path, *, data: Any = None, **changes: Any) -> Path:
    """Go on with a run that was stopped; returns its folder.

    Args:
        run: The run folder.
        data: The Python data that the run is on, where it is on such; None: what it was on.
        changes: ``epochs`` or ``budget``, and ``lr``, to plan the rest anew, and what does not
            affect the result (``workers``, ``save_minutes``, …).
    """
    from simmim.api import finetune, pretrain
    from simmim.runs.folder import command_of
    from simmim.training.launch import share_cores

    share_cores()
    if data is not None:
        from simmim.data.sources.find import find_images

        find_images(data)  # so that it is known in this process

    task = finetune if command_of(Path(run)) == "finetune" else pretrain
    return task.run_resume(Path(run), changes)


def load(
    source: str | Path, *, whole: bool = False, head: bool = False, **given: Any
) -> "LoadedEncoder | MaskedImageModel | Classifier | Segmenter | Detector":
    """Load what a run made, or somebody else's checkpoint, in evaluation mode, on the CPU.

    The format is recognised from the content (docs/checkpoints.md lists them). Nothing in a file is
    executed. What had to be guessed is told by a warning.

    Args:
        source: A run folder, a file of weights, a folder that timm or transformers wrote,
            ``timm:NAME`` or ``hf:REPO``.
        whole: Encoder and decoder, to predict masked patches.
        head: Encoder and head, of a fine-tuning, to tell classes, those of pixels, or objects.
        given: What the weights do not show, by the names of the code that wrote them:
            ``num_heads``, ``decoder_num_heads``, ``norm_pix_loss``, ``img_size``, ``mask_ratio``,
            ``mean``, ``std``, ``model`` (a timm name).

    Returns:
        The encoder: ``encoder.transform(path_or_array)`` → (C, H, W), ``encoder(images)`` → (B, D),
        ``encoder.tokens(images)`` → (B, N, D). With ``whole``, the model:
        ``model.predict(images, masked)`` → (B, M, K), ``model.loss(images, masked)`` → scalar.
        With ``head``, the classifier: ``classifier(images)`` → logits (B, classes), and
        ``classifier.predict("photos/")``, which has ``paths``, ``names`` and ``probabilities``;
        the segmenter, whose ``predict`` writes masks (docs/segment.md); or the detector, whose
        ``predict`` tells boxes (docs/detect.md).

    Raises:
        CheckpointError: Nothing there, a damaged or hostile file, an unknown layout, an encoder
            alone where ``whole`` is asked for, or weights that are missing, left over, or of
            another shape, with their names.
    """
    if head:
        from simmim.tasks.load import load_head

        if whole or given:
            raise ConfigError(f"head=True loads a run of simmim finetune alone, got {source}, "
                              f"whole={whole}, {given}.")  # fmt: skip
        return load_head(Path(source))
    from simmim.interop.load import load

    return load(source, whole=whole, **given)
