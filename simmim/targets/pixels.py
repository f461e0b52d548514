"""The pixels of the masked patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from simmim.config.target import PixelTarget
from simmim.targets.target import Target
from simmim.tensors.batch import Batch
from simmim.tensors.mask import Mask, pick
from simmim.tensors.patches import patchify

_EPSILON = 1e-6  # MAE, models_mae.py: forward_loss


class Pixels(Target):
    """Normalised pixels, raw or further normalised within each patch (MAE sec. 3).

    Args:
        config: The loss and the normalisation.
        patch: Side of a predicted patch in pixels.
        channels: Image channels.
    """

    def __init__(self, config: PixelTarget, patch: int, channels: int) -> None:
        super().__init__()
        self.config = config
        self.patch = patch
        self.outputs = channels * patch**2

    def values(self, batch: Batch, images: Tensor, mask: Mask) -> Tensor:  # noqa: ARG002
        """The masked patches: (B, C, H, W) → (B, M, K)."""
        return self.normalised(self.pixels(images, mask))

    def normalised(self, patches: Tensor) -> Tensor:
        """What is predicted of true masked patches (B, M, K)."""
        if not self.config.norm_pix:
            return patches
        mean, deviation = self.statistics(patches)
        return (patches - mean) / deviation

    def pixels(self, images: Tensor, mask: Mask) -> Tensor:
        """The masked patches without the normalisation within each: → (B, M, K)."""
        return pick(patchify(images, self.patch), mask.masked_index).float()

    def statistics(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation within each patch, (B, M, 1); the variance is the unbiased one."""
        variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
        return mean, (variance + _EPSILON).sqrt()

    def to_pixels(self, prediction: Tensor, patches: Tensor) -> Tensor:
        """A prediction in normalised pixels, given the true patches' mean and deviation.

        Args:
            prediction: (B, M, K).
            patches: The true masked patches (B, M, K), used by ``norm_pix`` alone.
        """
        if not self.config.norm_pix:
            return prediction
        mean, deviation = self.statistics(patches)
        return prediction * deviation + mean

    def loss(self, prediction: Tensor, values: Tensor) -> dict[str, Tensor]:
        """The mean per masked value, and its sum per image.

        ``loss_sum`` is Σ over masked patches of the squared L2 (or the L1) norm of the error, per
        image, averaged over the batch; ``loss`` is that over M·K.
        """
        compare = F.l1_loss if self.config.loss == "l1" else F.mse_loss
        loss = compare(prediction.float(), values)
        return {"loss": loss, "loss_sum": loss.detach() * values[0].numel()}
