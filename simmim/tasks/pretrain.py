"""Pretraining: mask, encode, decode, compare."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from simmim.config.models import find
from simmim.config.optim import Role
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig, check_grid
from simmim.interop.load import load_frozen
from simmim.models.mim import MaskedImageModel, build_model
from simmim.runs.encoder import save_encoder
from simmim.tensors.batch import Batch
from simmim.tensors.patches import normalise
from simmim.training.parallel import whole
from simmim.training.task import Task
from simmim.training.world import World


class PretrainTask(Task):
    """Mask, encode, decode, compare."""

    def __init__(self, model: MaskedImageModel) -> None:
        super().__init__(model)
        self.model = model

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The model's losses under masks that follow from the batch's places in the run."""
        return self.call(batch, self.model.draw(batch))

    def inputs(self, batch: Batch) -> Tensor:
        """See ``Task``."""
        return normalise(batch.images, self.model.pixels)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the model."""
        return self.model.roles()

    def after_step(self, step: int, steps: int) -> None:
        """A part with a teacher moves it here."""
        self.model.after_step(step, steps)

    def deploy(self, run: Path, lineage: dict[str, object], world: World) -> None:
        """See ``Task``."""
        model = self.model
        state = whole(model.encoder.timm_state(), world)
        world.write(lambda: save_encoder(run, model.encoder, model.pixels, lineage, state))


def build_task(
    config: PretrainConfig, pixels: PixelFormat, world: World, names: Sequence[str] = ()
) -> PretrainTask:
    """The model with its first weights, from torch's generator, on the device.

    Args:
        config: What to build.
        pixels: How images are normalised.
        world: The processes.
        names: Of the images that are trained on.
    """
    known = find(config.encoder.model)
    # A name that is not in the table gets 224 for its size and is judged by timm when it is built.
    side = known.size if known else 224
    size = config.encoder.image_size or (side, side)
    model = build_model(config, pixels, size, names=names, load=load_frozen)
    check_grid(size, model.encoder.stride, config.mask.unit)
    return PretrainTask(model.to(world.device))
