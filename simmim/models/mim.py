"""Where the parts meet: a masked image model, from pixels to losses."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from simmim.config.optim import Role
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.errors import ConfigError
from simmim.models.build import build_encoder
from simmim.models.decoders import Decoder, build_decoder
from simmim.models.encoder import Encoder
from simmim.targets.build import build_target
from simmim.targets.pixels import Target
from simmim.tensors.batch import Batch
from simmim.tensors.features import Features
from simmim.tensors.mask import Mask, pick
from simmim.tensors.patches import normalise, patchify


class Extra(Protocol):
    """A further loss on the same features, such as one that reads captions."""

    def __call__(self, batch: Batch, mask: Mask, features: Features) -> Mapping[str, Tensor]:
        """Named scalars, ``loss`` among them, already weighted."""
        ...


class MaskedImageModel(nn.Module):
    """Mask patches, encode what is left, predict what was masked.

    Whether the encoder sees a mask token in place of a masked patch, or nothing at all, follows
    from what the decoder reads: all positions, or the visible ones.

    Args:
        encoder: The backbone.
        decoder: Predicts the masked patches from its features.
        target: What is predicted, and the loss.
        pixels: How decoded values are normalised.
        reads: What the decoder reads, ``visible`` or ``all``.
        mask_token_std: Standard deviation of the encoder's mask token's start, where it has one.
        extras: Further losses by name; those that are modules are trained along.

    Attributes:
        grid: Patches per column and per row, (h, w), on which masks are counted.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        target: Target,
        pixels: PixelFormat,
        *,
        reads: str,
        extras: Mapping[str, Extra] | None = None,
    ) -> None:
        super().__init__()
        if reads == "visible" and encoder.whole:
            raise ConfigError(
                f"{encoder.model} needs every token of the image, so masked patches cannot be left "
                "out. Use a recipe that replaces them by a mask token: --recipe simmim-paper-swin."
            )
        self.encoder = encoder
        self.decoder = decoder
        self.target = target
        self.pixels = pixels
        self.grid = encoder.grid
        self.mask_token: nn.Parameter | None = None
        if reads == "all":
            self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.token_width))
            # The original truncates at ±1 standard deviation.
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.extras = dict(extras or {})
        self.extra_modules = nn.ModuleDict(
            {name: extra for name, extra in self.extras.items() if isinstance(extra, nn.Module)}
        )

    def forward(self, batch: Batch, mask: Mask) -> dict[str, Tensor]:
        """The whole path in one call, from decoded values to named scalars with ``loss``."""
        images = normalise(batch.images, self.pixels)
        features = self.encode(images, mask)
        prediction = self.decoder(features, mask)
        losses = self.compare(prediction, images, mask)
        for name, extra in self.extras.items():
            values = dict(extra(batch, mask, features))
            losses["loss"] = losses["loss"] + values["loss"]
            losses |= {f"{name}_{key}": value.detach() for key, value in values.items()}
        return losses

    def encode(self, images: Tensor, mask: Mask) -> Features:
        """Features of normalised images (B, C, H, W); no masked pixel enters the encoder.

        Raises:
            ConfigError: The mask is of images of another size.
        """
        encoder = self.encoder
        patches = patchify(images, encoder.patch)  # (B, N', K), N' on the encoder's own grid
        fine = mask.refine(encoder.stride // encoder.patch)
        if patches.shape[1] != fine.masked.shape[1]:
            h, w = (side * encoder.stride for side in mask.grid)
            raise ConfigError(
                f"The mask is of images of {h}×{w} pixels, and was given with images of "
                f"{images.shape[2]}×{images.shape[3]}. Bring the images to that size."
            )
        seen = encoder.project(pick(patches, fine.visible_index))  # (B, V', D)
        if self.mask_token is None:
            return encoder(seen, fine.visible_index, fine.grid)
        tokens = self.mask_token.to(seen.dtype).expand(len(seen), patches.shape[1], -1)
        index = fine.visible_index[..., None].expand_as(seen)
        return encoder(tokens.scatter(1, index, seen), None, fine.grid)

    def compare(self, prediction: Tensor, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        """The target's losses, in float32 outside autocast."""
        with torch.autocast(images.device.type, enabled=False):
            return self.target.loss(prediction.float(), self.target.values(images, mask))

    def predict(self, images: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked patches.

        Args:
            images: Normalised, (B, C, H, W).
            masked: bool (B, N), the same count in every row.

        Returns:
            (B, M, K), masked patches in ascending order.
        """
        mask = Mask.given(masked, self.grid)
        return self.decoder(self.encode(images, mask), mask)

    def loss(self, images: Tensor, masked: Tensor) -> Tensor:
        """What the recipe optimises, a scalar; arguments as for ``predict``."""
        mask = Mask.given(masked, self.grid)
        prediction = self.decoder(self.encode(images, mask), mask)
        return self.compare(prediction, images, mask)["loss"]

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Role and depth in the stack of each parameter."""
        top = self.encoder.depth + 1
        roles = {f"encoder.{name}": role for name, role in self.encoder.roles().items()}
        roles |= {f"decoder.{name}": role for name, role in self.decoder.roles(top).items()}
        if self.mask_token is not None:
            roles["mask_token"] = ("mask", 0)
        for name, parameter in self.named_parameters():
            roles.setdefault(name, ("vector" if parameter.ndim == 1 else "weight", top))
        return roles


def build_model(
    config: PretrainConfig,
    pixels: PixelFormat,
    image_size: tuple[int, int],
    *,
    target: Target | None = None,
    extras: Mapping[str, Extra] | None = None,
) -> MaskedImageModel:
    """The model of a recipe; weights start from torch's global generator.

    Args:
        config: The recipe.
        pixels: How decoded values are normalised; its channels are the encoder's.
        image_size: Height and width in pixels.
        target: Instead of the recipe's own.
        extras: Further losses by name.
    """
    encoder = build_encoder(config.encoder, image_size=image_size, channels=pixels.channels)
    target = target or build_target(config.target, encoder.stride, pixels.channels)
    decoder = build_decoder(config.decoder, encoder, target.outputs)
    return MaskedImageModel(
        encoder, decoder, target, pixels, reads=config.decoder.reads, extras=extras
    )
