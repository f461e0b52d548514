"""What the loop trains."""

from pathlib import Path

from torch import Tensor, nn

from simmim.config.optim import Role
from simmim.models.encoder import Encoder
from simmim.tensors.batch import Batch
from simmim.training.world import World


class Task:
    """What the loop trains: a module and how a batch becomes a loss.

    Attributes:
        module: Its weights are trained and saved.
        call: The module as it is to be called in ``loss``; the loop puts the wrapper in that
            averages gradients over processes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.call = module

    @property
    def encoder(self) -> Encoder:
        """The part of the module that is kept."""
        encoder = self.module.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalars, means over the rows of the batch; ``loss`` is optimised."""
        raise NotImplementedError

    def inputs(self, batch: Batch) -> Tensor:
        """The images of the batch as the module is shown them, normalised."""
        raise NotImplementedError

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Role and depth in the stack of each parameter."""
        raise NotImplementedError

    def after_step(self, step: int, steps: int) -> None:
        """Called when step number ``step``, from 1, of ``steps`` is done."""

    def deploy(self, run: Path, lineage: dict[str, object], world: World) -> None:
        """Write what others use of the weights, as they are now; called in all processes.

        Args:
            run: The run folder.
            lineage: Where the weights come from; see ``save_encoder``.
            world: The processes, of which the first writes.
        """
        raise NotImplementedError
