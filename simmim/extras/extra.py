"""What a model needs of an extra, a further loss on the same features."""

from collections.abc import Mapping

from torch import Tensor

from simmim.tensors.batch import Batch
from simmim.tensors.features import Features
from simmim.tensors.mask import Mask
from simmim.tensors.parts import Encode, Part


class Extra(Part):
    """A further loss; the model multiplies it by the weight in the config and adds it."""

    def forward(
        self, batch: Batch, mask: Mask, features: Features, encode: Encode
    ) -> Mapping[str, Tensor]:
        """Named scalars, means over the rows, ``loss`` among them; the same names at every step.

        Args:
            batch: Decoded values, with all that the loader handed on.
            mask: What was masked in them.
            features: Of what the encoder saw of them.
            encode: Gives features of other images, such as further views, with gradients.
        """
        raise NotImplementedError
