"""The one contract that every backbone keeps: patches in, tokens out."""

import operator
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simmim.config.encoder import EncoderConfig
from simmim.config.optim import Role
from simmim.errors import CheckpointError, ConfigError
from simmim.models.initial import start_positions, start_truncated, start_xavier
from simmim.models.lora import merged
from simmim.models.resample import Grid, resample_state
from simmim.tensors.features import Features
from simmim.tensors.parts import usual_roles
from simmim.tensors.patches import patchify

MOST_KEPT = 32
"""Grids of which an encoder keeps what follows from them; the first one makes room for another."""


class Encoder(nn.Module):
    """A timm model behind the contract; its parameters are timm's.

    It is built for one grid and takes any. At another one, weights that say where patches are stay
    what they are, and what they mean there is computed from them (``simmim.models.resample``), so
    that they can be trained by images of several sizes. ``load_timm_state`` changes the weights
    instead, for an encoder that was built for another grid than they were.

    Attributes:
        net: The timm model.
        model: Its name; ``timm.create_model(model, **arguments)`` is the deployed model.
        arguments: See ``model``; JSON holds them.
        image_size: Height and width in pixels of the images that it was built for.
        channels: Image channels C.
        width: Width D of the features.
        token_width: Width of projected patches, and so of mask tokens: D, but less for Swin.
        patch: Side P of a patch in pixels.
        stride: Side in pixels of what one feature stands for: the patch, but 32 for Swin.
        grid: Features per column and row, on which masks are counted: image size / stride.
        token_grid: Patches per column and row: image size / patch. Its own grid.
        whole: True where every patch must be present, so that none can be left out.
    """

    whole: ClassVar[bool] = False
    stages: ClassVar[int] = 1
    """Resolutions that the tokens pass through, each half of the one before."""
    pooling: ClassVar[dict[str, Any]] = {}
    """Arguments that make timm's output the mean of the patches, and put ``norm`` before it."""
    net: Any

    def __init__(
        self,
        net: nn.Module,
        *,
        model: str,
        arguments: dict[str, Any],
        image_size: tuple[int, int],
        channels: int,
    ) -> None:
        super().__init__()
        self.net = net
        self.model = model
        self.arguments = arguments
        self.image_size = image_size
        self.channels = channels
        self.width: int = self.net.num_features
        self.token_width: int = self.net.patch_embed.proj.out_channels
        self.patch: int = self.net.patch_embed.patch_size[0]
        self.stride = self.patch
        self.grid = self.token_grid = (image_size[0] // self.patch, image_size[1] // self.patch)
        self._kept: dict[Hashable, tuple[Tensor, ...]] = {}

    @classmethod
    def plan(cls, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """``timm.create_model``'s arguments for the deployed model and for the one trained."""
        deployed = {**arguments, **cls.pooling}
        return deployed, deployed

    @property
    def relates(self) -> bool:
        """True where the blocks know the places of tokens without absolute positions."""
        return True

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, in the order that tokens pass them."""
        return list(self.net.blocks)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.layers)

    def start(self, config: EncoderConfig) -> None:
        """Draw weights and set positions as ``config`` says.

        Raises:
            ConfigError: The width does not allow sine-cosine positions.
        """
        if config.init == "xavier":
            start_xavier(self.net, self.prefix_tokens())
        elif config.init == "truncated":
            start_truncated(self.net, self.prefix_tokens(), self.layers)
        pos_embed = getattr(self.net, "pos_embed", None)
        if pos_embed is not None and config.position != "none":
            start_positions(pos_embed, self.grid, config.position)

    def features(self, images: Tensor, layers: tuple[int, ...] = ()) -> Features:
        """Features of whole images, normalised (B, C, H, W), of any size that the stride divides.

        ``layers`` as in ``forward``.

        Raises:
            ConfigError: Images of another number of channels, or of a size that does not fit.
        """
        channels, *size = images.shape[1:]
        if channels != self.channels or len(size) != 2 or any(n % self.stride for n in size):
            raise ConfigError(
                f"This encoder takes images of {self.channels}×H×W (channels, height, width), H "
                f"and W multiples of {self.stride}, and was given {_by(tuple(images.shape[1:]))}. "
                "Bring the images to such a size, or build it for their channels."
            )
        height, width = size
        tokens = self.project(patchify(images, self.patch))
        return self(tokens, None, (height // self.patch, width // self.patch), layers)

    def project(self, patches: Tensor) -> Tensor:
        """Project patches (B, L, K), values in (row, column, channel) order, to tokens (B, L, D).

        Each patch is projected on its own, so one that is left out reaches nothing.
        """
        embed = self.net.patch_embed
        weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)  # D C P P → D K
        tokens = embed.norm(F.linear(patches, weight, embed.proj.bias))
        return tokens.to(weight.dtype)  # the residual stream stays float32 under autocast

    def forward(
        self,
        tokens: Tensor,
        index: Tensor | None,
        grid: Grid,
        layers: tuple[int, ...] = (),
    ) -> Features:
        """Encode projected patches.

        Args:
            tokens: What ``project`` returned, or mask tokens among it (B, L, D).
            index: Place of each token on the grid, row-major (B, L) int64; None: all N in order.
            grid: Patches per column and row of the images, ``token_grid`` or any other.
            layers: Numbers, from 0, of blocks whose output is wanted too.

        Raises:
            ConfigError: The tokens do not fill the grid, or the stride does not divide it.
        """
        raise NotImplementedError

    def _check_grid(self, tokens: Tensor, index: Tensor | None, grid: Grid) -> Grid:
        grid = (operator.index(grid[0]), operator.index(grid[1]))  # to a compiler, constants
        step = self.stride // self.patch
        if min(grid) < 1 or any(side % step for side in grid):
            raise ConfigError(
                f"A grid of {_by(grid)} patches does not fit {self.model}: its sides must be "
                f"multiples of {step}, those of the images of {self.stride} pixels."
            )
        if index is None and tokens.shape[1] != grid[0] * grid[1]:
            raise ConfigError(
                f"{tokens.shape[1]} tokens do not fill a grid of {_by(grid)} patches. Give the "
                "grid that the tokens are of, or the place of each on it."
            )
        return grid

    def _once(self, key: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``make`` gives: it follows from ``key``, a grid, alone, and is kept.

        Not what only stands for tensors, while a graph is traced or its size is tried.
        """
        if key in self._kept:
            return self._kept[key]
        if torch.compiler.is_compiling():
            return make()
        with torch.inference_mode(mode=False), torch.no_grad():
            made = make()
        if all(type(tensor) is Tensor for tensor in made):
            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = made
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002
        self._kept.clear()  # to another device or type
        return super()._apply(fn, recurse)

    def places(self) -> dict[str, Grid]:
        """The grid, or window, that each weight is for which says where patches are.

        By timm's names.
        """
        absolute = getattr(self.net, "pos_embed", None) is not None
        return {"pos_embed": self.token_grid} if absolute else {}

    def prefix_tokens(self) -> list[nn.Parameter]:
        """Class, distillation and register tokens (1, n, D), in the order of the sequence."""
        named = ("cls_token", "dist_token", "reg_token")
        tokens = (getattr(self.net, name, None) for name in named)
        return [token for token in tokens if token is not None]

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Role and depth of each parameter, by its name in ``named_parameters``.

        Depth is 0 before the blocks, 1 to ``depth`` in them, and ``depth`` + 1 after.
        """
        depth = {id(p): n for n, group in self._by_depth() for p in group}
        role: dict[int, Role] = {id(p): "prefix" for p in self.prefix_tokens()}
        role |= {id(p): "relative" for p in self._relative_tables()}
        role[id(getattr(self.net, "pos_embed", None))] = "position"
        usual = usual_roles(self, self.layers)
        return {
            name: (role.get(id(p), usual[name]), depth.get(id(p), 0))
            for name, p in self.named_parameters()
        }

    def _relative_tables(self) -> list[nn.Parameter]:
        return []

    def _by_depth(self) -> list[tuple[int, list[nn.Parameter]]]:
        blocks = [(n, list(block.parameters())) for n, block in enumerate(self.layers, start=1)]
        return [*blocks, (self.depth + 1, list(self.net.norm.parameters()))]

    def timm_state(self) -> dict[str, Tensor]:
        """Weights of the deployed timm model, by timm's names: none left over, none missing."""
        return merged(self.net)

    def load_timm_state(
        self, state: dict[str, Tensor], places: dict[str, Grid] | None = None
    ) -> None:
        """Load what ``timm_state`` wrote.

        Args:
            state: The weights.
            places: ``places`` of the encoder that wrote them, where it was built for another grid:
                they are resampled, once. None: they fit as they are.

        Raises:
            CheckpointError: A name is missing or unexpected, or a shape differs.
        """
        if places is not None:
            state = {**state, **resample_state(state, places, self.places())}
        self._check_state(state)
        self._load(state)

    def _load(self, state: dict[str, Tensor]) -> None:
        self.net.load_state_dict(state)

    def _check_state(self, state: dict[str, Tensor]) -> None:
        own = self.timm_state()
        wrong = [
            f"{name}: {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in own.keys() & state.keys()
            if state[name].shape != own[name].shape
        ]
        faults = {
            "missing": own.keys() - state.keys(),
            "unexpected": state.keys() - own.keys(),
            "of another shape": wrong,
        }
        found = [f"{len(n)} {what} ({_some(sorted(n))})" for what, n in faults.items() if n]
        if found:
            raise CheckpointError(
                f"These weights do not fit {self.model} with {self.arguments}: {'; '.join(found)}. "
                "Build the encoder with the model name and arguments that they were saved with."
            )


def _by(sides: tuple[int, ...]) -> str:
    return "×".join(str(side) for side in sides)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
