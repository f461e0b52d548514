"""Pretraining: mask, encode, decode, compare."""

from pathlib import Path

from torch import Tensor

from simmim.config.models import find
from simmim.config.optim import Role
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig, check_grid
from simmim.masking.samplers import Masker, Sampler
from simmim.models.mim import MaskedImageModel, build_model
from simmim.runs.encoder import save_encoder
from simmim.tensors.batch import Batch
from simmim.tensors.patches import normalise
from simmim.training.task import Task
from simmim.training.world import World


class PretrainTask(Task):
    """Mask, encode, decode, compare."""

    def __init__(
        self, model: MaskedImageModel, config: PretrainConfig, sampler: Sampler | None = None
    ) -> None:
        super().__init__(model)
        self.model = model
        self.masker = Masker(config.mask, model.grid, model.encoder.stride, config.seed, sampler)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The model's losses under masks that follow from the batch's places in the run."""
        return self.call(batch, self.masker.draw(batch))

    def inputs(self, batch: Batch) -> Tensor:
        """See ``Task``."""
        return normalise(batch.images, self.model.pixels)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the model."""
        return self.model.roles()

    def after_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        """A target with a teacher moves it here."""
        self.model.target.after_step(step)

    def deploy(self, run: Path, lineage: dict[str, object]) -> None:
        """See ``Task``."""
        save_encoder(run, self.model.encoder, self.model.pixels, lineage)


def build_task(
    config: PretrainConfig, pixels: PixelFormat, world: World, sampler: Sampler | None = None
) -> PretrainTask:
    """The model with its first weights, from torch's generator, on the device."""
    known = find(config.encoder.model)
    # A name that is not in the table gets 224 for its size and is judged by timm when it is built.
    side = known.size if known else 224
    size = config.encoder.image_size or (side, side)
    model = build_model(config, pixels, size)
    check_grid(size, model.encoder.stride, config.mask.unit)
    return PretrainTask(model.to(world.device), config, sampler)
