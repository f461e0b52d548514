"""Where the parts meet: a masked image model, from pixels to losses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from simmim.config.optim import Role
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.errors import ConfigError
from simmim.extras.build import build_extra
from simmim.extras.extra import Extra
from simmim.masking.build import build_sampler
from simmim.masking.samplers import Sampler
from simmim.models.build import build_encoder
from simmim.models.decoders import Decoder, build_decoder
from simmim.models.encoder import Encoder
from simmim.targets.build import build_target
from simmim.targets.target import Target
from simmim.tensors.batch import Batch
from simmim.tensors.counter import Purpose
from simmim.tensors.features import Features
from simmim.tensors.mask import Mask, pick
from simmim.tensors.parts import Backbone, Part, Parts
from simmim.tensors.patches import normalise, patchify

Load = Callable[[str], tuple[Backbone, PixelFormat]]


def nothing_to_load(source: str) -> tuple[Backbone, PixelFormat]:
    """The ``load`` of a model that is built where no other weights are at hand."""
    raise ConfigError(f"the weights of {source} cannot be loaded here.")


class MaskedImageModel(nn.Module):
    """Mask patches, encode what is left, predict what was masked.

    Whether the encoder sees a mask token in place of a masked patch, or nothing at all, follows
    from what the decoder reads: all positions, or the visible ones.

    Args:
        encoder: The backbone.
        decoder: Predicts the masked patches from its features.
        target: What is predicted, and the loss.
        sampler: Draws the masks.
        pixels: How decoded values are normalised.
        reads: What the decoder reads, ``visible`` or ``all``.
        extras: Further losses by name, each with its weight in the sum.

    Attributes:
        grid: Patches per column and per row, (h, w), on which masks are counted.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        target: Target,
        sampler: Sampler,
        pixels: PixelFormat,
        *,
        reads: str,
        extras: Mapping[str, tuple[Extra, float]] | None = None,
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
        self.sampler = sampler
        self.pixels = pixels
        self.grid = encoder.grid
        self.mask_token: nn.Parameter | None = None
        if reads == "all":
            self.mask_token = nn.Parameter(torch.empty(1, 1, encoder.token_width))
            # The original truncates at ±1 standard deviation.
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)
        self.extras = nn.ModuleDict({name: extra for name, (extra, _) in (extras or {}).items()})
        self.weights = {name: weight for name, (_, weight) in (extras or {}).items()}

    @property
    def layers(self) -> list[nn.Module]:
        """All blocks, in the order that tokens pass them."""
        parts = (layer for part in self._parts().values() for layer in part.layers)
        return [*self.encoder.layers, *parts]

    def forward(
        self, batch: Batch, mask: Mask, path: Callable[..., Any] | None = None
    ) -> dict[str, Tensor]:
        """The whole path in one call, from decoded values to named scalars with ``loss``.

        Args:
            batch: The images.
            mask: Their masks.
            path: What to compute of the two instead. DDP, FSDP and compile see calls of the module
                and no other method, so ``predict`` and the like begin with such a call.
        """
        if path is not None:
            return path(batch, mask)
        images = normalise(batch.images, self.pixels)
        features = self.encode(images, mask)
        prediction = self.decoder(features, mask)
        losses = self.compare(prediction, batch, images, mask)
        for name, extra in self.extras.items():
            values = extra(batch, mask, features, self._encode)
            losses["loss"] = losses["loss"] + self.weights[name] * values["loss"]
            losses |= {f"{name}_{key}": value.detach() for key, value in values.items()}
        return losses

    def draw(self, batch: Batch, purpose: Purpose = Purpose.MASK) -> Mask:
        """The masks of a batch, a function of (seed, purpose, t) and what the sampler knows."""
        with torch.no_grad():
            return self.sampler.draw(batch, purpose, self._features_for_sampler)

    def _features_for_sampler(
        self, images: Tensor, mask: Mask | None = None, layers: tuple[int, ...] = ()
    ) -> Features:
        """See ``Encode``: for a sampler, before the model is called; nothing is dropped."""
        training = self.encoder.training
        self.encoder.eval()
        try:
            return self(images, mask, lambda images, mask: self._encode(images, mask, layers))
        finally:
            self.encoder.train(training)

    def _encode(
        self, images: Tensor, mask: Mask | None = None, layers: tuple[int, ...] = ()
    ) -> Features:
        """See ``Encode``."""
        return self.encode(normalise(images, self.pixels), mask, layers)

    def encode(self, images: Tensor, mask: Mask | None, layers: tuple[int, ...] = ()) -> Features:
        """Features of normalised images (B, C, H, W); no masked pixel enters the encoder.

        Args:
            images: Of any size that the encoder takes.
            mask: Of their patches; None: all are seen.
            layers: Numbers, from 0, of blocks whose output is wanted too.

        Raises:
            ConfigError: The mask is of images of another size.
        """
        encoder = self.encoder
        if mask is None:
            return encoder.features(images, layers)
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
            return encoder(seen, fine.visible_index, fine.grid, layers)
        tokens = self.mask_token.to(seen.dtype).expand(len(seen), patches.shape[1], -1)
        index = fine.visible_index[..., None].expand_as(seen)
        return encoder(tokens.scatter(1, index, seen), None, fine.grid, layers)

    def compare(
        self, prediction: Tensor, batch: Batch, images: Tensor, mask: Mask
    ) -> dict[str, Tensor]:
        """The target's losses, in float32 outside autocast."""
        with torch.autocast(images.device.type, enabled=False):
            return self.target.compare(prediction.float(), batch, images, mask)

    def predict(self, images: Tensor, masked: Tensor) -> Tensor:
        """Predict the masked patches.

        Args:
            images: Normalised, (B, C, H, W).
            masked: bool (B, N), the same count in every row.

        Returns:
            (B, M, K), masked patches in ascending order.
        """
        return self(images, Mask.given(masked, self.grid), self._predict)

    def pooled(self, images: Tensor) -> Tensor:
        """The mean of the patch features (B, D) of whole images, normalised (B, C, H, W)."""
        return self(images, None, self._pooled)

    def loss(self, images: Tensor, masked: Tensor) -> Tensor:
        """What the recipe optimises, a scalar; arguments as for ``predict``."""
        return self(images, Mask.given(masked, self.grid), self._compared)["loss"]

    def _predict(self, images: Tensor, mask: Mask) -> Tensor:
        return self.decoder(self.encode(images, mask), mask)

    def _pooled(self, images: Tensor, _: None) -> Tensor:
        return self.encoder.features(images).patches.float().mean(1)

    def _compared(self, images: Tensor, mask: Mask) -> dict[str, Tensor]:
        batch = Batch(images, torch.arange(len(images)))
        return self.compare(self._predict(images, mask), batch, images, mask)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Role and depth in the stack of each parameter."""
        top = self.encoder.depth + 1
        roles = {f"encoder.{name}": role for name, role in self.encoder.roles().items()}
        for name, part in self._parts().items():
            roles |= {f"{name}.{key}": role for key, role in part.roles(top).items()}
        if self.mask_token is not None:
            roles["mask_token"] = ("mask", 0)
        return roles

    def after_step(self, step: int, steps: int) -> None:
        """Tell the parts that step number ``step`` of ``steps``, from 1, is done."""
        with torch.no_grad():
            for part in self._parts().values():
                part.after_step(step, steps, self)

    def _parts(self) -> dict[str, Part]:
        parts: dict[str, Part] = {
            "decoder": self.decoder,
            "target": self.target,
            "sampler": self.sampler,
        }
        for name, extra in self.extras.items():
            assert isinstance(extra, Extra)
            parts[f"extras.{name}"] = extra
        return parts


def build_model(
    config: PretrainConfig,
    pixels: PixelFormat,
    image_size: tuple[int, int],
    *,
    names: Sequence[str] = (),
    load: Load = nothing_to_load,
) -> MaskedImageModel:
    """The model of a recipe; weights start from torch's global generator.

    Args:
        config: The recipe.
        pixels: How decoded values are normalised; its channels are the encoder's.
        image_size: Height and width in pixels.
        names: Of the images that are trained on.
        load: Gives another encoder with its weights; see ``Parts``.
    """
    encoder = build_encoder(config.encoder, image_size=image_size, channels=pixels.channels)
    parts = parts_for(encoder, pixels, seed=config.seed, names=names, load=load)
    target = build_target(config.target, parts)
    return MaskedImageModel(
        encoder,
        build_decoder(config.decoder, parts, target.outputs),
        target,
        build_sampler(config.mask, parts),
        pixels,
        reads=config.decoder.reads,
        extras={each.kind: (build_extra(each, parts), each.weight) for each in config.extras},
    )


def parts_for(
    encoder: Encoder,
    pixels: PixelFormat,
    *,
    seed: int = 0,
    names: Sequence[str] = (),
    load: Load = nothing_to_load,
) -> Parts:
    """What the other parts of a model with this encoder may need."""
    return Parts(
        encoder=encoder,
        pixels=pixels,
        grid=encoder.grid,
        patch=encoder.stride,
        seed=seed,
        names=names,
        load=load,
    )
