"""What the loop trains."""

from torch import Tensor, nn

from simmim.config.optim import Role
from simmim.tensors.batch import Batch


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
        """Called when step number ``step`` of ``steps``, from 1, is done."""
