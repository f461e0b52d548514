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

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ResourceError",
    "SimmimError",
    "TrainingError",
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
    from simmim.api import run_pretrain
    from simmim.api.settings import configure

    return run_pretrain(configure(data, recipe, settings))


def resume(run: str | Path, *, data: Any = None, **changes: Any) -> Path:
    """Go on with a run that was stopped; returns its folder.

    Args:
        run: The run folder.
        data: The Python data that the run is on, where it is on such; None: what it was on.
        changes: ``epochs`` or ``budget``, and ``lr``, to plan the rest anew, and what does not
            affect the result (``workers``, ``save_minutes``, …).
    """
    from simmim.api import run_resume

    if data is not None:
        from simmim.data.sources.find import find_images

        find_images(data)  # so that it is known in this process

    return run_resume(Path(run), changes)


def load(
    source: str | Path, *, whole: bool = False, **given: Any
) -> "LoadedEncoder | MaskedImageModel":
    """Load what a run made, or somebody else's checkpoint, in evaluation mode, on the CPU.

    The format is recognised from the content (docs/checkpoints.md lists them). Nothing in a file is
    executed. What had to be guessed is told by a warning.

    Args:
        source: A run folder, a file of weights, a folder that timm or transformers wrote,
            ``timm:NAME`` or ``hf:REPO``.
        whole: Encoder and decoder, to predict masked patches.
        given: What the weights do not show, by the names of the code that wrote them:
            ``num_heads``, ``decoder_num_heads``, ``norm_pix_loss``, ``img_size``, ``mask_ratio``,
            ``mean``, ``std``, ``model`` (a timm name).

    Returns:
        The encoder: ``encoder.transform(path_or_array)`` → (C, H, W), ``encoder(images)`` → (B, D),
        ``encoder.tokens(images)`` → (B, N, D). With ``whole``, the model:
        ``model.predict(images, masked)`` → (B, M, K), ``model.loss(images, masked)`` → scalar.

    Raises:
        CheckpointError: Nothing there, a damaged or hostile file, an unknown layout, an encoder
            alone where ``whole`` is asked for, or weights that are missing, left over, or of
            another shape, with their names.
    """
    from simmim.interop.load import load

    return load(source, whole=whole, **given)
