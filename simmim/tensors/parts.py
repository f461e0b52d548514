"""What the parts of a model have in common, and what they may need when they are built."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from simmim.config.optim import Role
from simmim.config.resolved import PixelFormat
from simmim.tensors.features import Features
from simmim.tensors.mask import Mask

Roles = dict[str, tuple[Role, int]]
"""Role and depth in the stack of each parameter, by name."""


class Backbone(Protocol):
    """What a part may know of an encoder; ``simmim.models.encoder`` tells more."""

    image_size: tuple[int, int]
    width: int
    patch: int

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks."""
        ...

    def features(self, images: Tensor, layers: tuple[int, ...] = ()) -> Features:
        """Features of whole images, normalised (B, C, H, W)."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""
        ...


class Encode(Protocol):
    """The model's encoder as samplers and extras are handed it."""

    def __call__(
        self, images: Tensor, mask: Mask | None = None, layers: tuple[int, ...] = ()
    ) -> Features:
        """Features of decoded values (B, C, H, W); without a mask, of whole images.

        ``layers`` are the numbers, from 0, of blocks whose output is wanted too.
        """
        ...


class Trained(Protocol):
    """The model that a part belongs to."""

    @property
    def encoder(self) -> Backbone:
        """Its encoder."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a part may need when it is built; it keeps no module of it.

    Attributes:
        encoder: The backbone.
        pixels: How decoded values are normalised, and the number of channels.
        grid: Patches per column and per row, (h, w), on which masks are counted.
        patch: Side in pixels of a patch of that grid.
        seed: Seed of the run.
        names: The names of the images that are trained on; ``Batch.index`` counts them.
        load: Gives the encoder of a source, such as timm:NAME, with its weights, frozen, and how
            its images are normalised.
    """

    encoder: Backbone
    pixels: PixelFormat
    grid: tuple[int, int]
    patch: int
    seed: int
    names: Sequence[str]
    load: Callable[[str], tuple[Backbone, PixelFormat]]


def usual_roles(module: nn.Module, layers: Sequence[nn.Module]) -> dict[str, Role]:
    """The role of each parameter as far as its shape and place tell, by name.

    Args:
        module: 1-d ones are vectors, all others matrices.
        layers: The blocks of the module; their 2-d parameters are matrices of a block.
    """
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return {
        name: "vector" if p.ndim <= 1 else "block" if p.ndim == 2 and id(p) in inside else "weight"
        for name, p in module.named_parameters()
    }


class Part(nn.Module):
    """A part of a model: its weights and buffers are saved, moved and counted with the model's.

    Attributes:
        layers: Its blocks, in order, where it has depth.
    """

    layers: Sequence[nn.Module] = ()

    def roles(self, depth: int) -> Roles:
        """Role and depth of each parameter, for an encoder that ends at ``depth``."""
        return {name: (role, depth) for name, role in usual_roles(self, self.layers).items()}

    def after_step(self, step: int, steps: int, model: Trained) -> None:
        """Called when step number ``step`` of ``steps``, from 1, is done; a teacher moves here."""
