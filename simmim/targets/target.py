"""What a model needs of a target: what is predicted, and how an error is measured."""

from typing import TypeVar

from torch import Tensor

from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask
from simmim.tensors.parts import Part

T = TypeVar("T")


class Target(Part):
    """What is predicted for a masked patch; it may hold weights (a teacher, a codebook).

    Attributes:
        outputs: Numbers that the decoder predicts per masked patch.
    """

    outputs: int

    def values(self, batch: Batch, images: Tensor, mask: Mask) -> Tensor:
        """What is to be predicted → (B, M, …).

        Args:
            batch: Decoded values, with all that the loader handed on.
            images: The same images, normalised (B, C, H, W).
            mask: What is masked in them.
        """
        raise NotImplementedError

    def loss(self, prediction: Tensor, values: Tensor) -> dict[str, Tensor]:
        """Scalars, with ``loss`` among them, from a prediction (B, M, outputs) in float32."""
        raise NotImplementedError

    def compare(
        self, prediction: Tensor, batch: Batch, images: Tensor, mask: Mask
    ) -> dict[str, Tensor]:
        """The loss of a prediction; arguments as above."""
        return self.loss(prediction, self.values(batch, images, mask))

    def within(self, kind: type[T]) -> tuple[T, slice] | None:
        """The target of a kind that this is or holds, and its columns of a prediction."""
        return (self, slice(0, self.outputs)) if isinstance(self, kind) else None
