"""A module beside the moving average of its weights, which is what is measured and kept."""

from typing import Any, Generic, TypeVar

from timm.utils import ModelEmaV3
from torch import nn

from simmim.models.encoder import Encoder

M = TypeVar("M", bound=nn.Module)


class Averaged(nn.Module, Generic[M]):
    """Calls the module that is trained; both are saved.

    Args:
        trained: A module with an encoder.
        decay: Of the average, which grows towards it: 1 − (1 + step)^(−2/3), timm's rule.
    """

    def __init__(self, trained: M, decay: float) -> None:
        super().__init__()
        self._rule = [ModelEmaV3(trained, decay=decay, use_warmup=True)]  # no submodule of ours
        self.trained = trained
        self.average: M = self._rule[0].module.requires_grad_(requires_grad=False)

    @property
    def encoder(self) -> Encoder:
        """Of the module that is trained."""
        encoder = self.trained.encoder
        assert isinstance(encoder, Encoder)
        return encoder

    def forward(self, *inputs: Any) -> Any:
        """Call the module that is trained."""
        return self.trained(*inputs)

    def update(self, step: int) -> None:
        """Move the average; ``step`` is that which was made, from 1."""
        self._rule[0].update(self.trained, step)
