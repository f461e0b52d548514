"""The one contract that every backbone keeps: patches in, tokens out."""

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from simmim.config.encoder import EncoderConfig
from simmim.config.optim import Role
from simmim.errors import CheckpointError, ConfigError
from simmim.models.initial import start_positions, start_truncated, start_xavier
from simmim.tensors.features import Features
from simmim.tensors.patches import patchify


class Encoder(nn.Module):
    """A timm model behind the contract; its parameters are timm's.

    Attributes:
        net: The timm model.
        model: Its name; ``timm.create_model(model, **arguments)`` is the deployed model.
        arguments: See ``model``; JSON holds them.
        image_size: Height and width in pixels.
        channels: Image channels C.
        width: Width D of the features.
        token_width: Width of projected patches, and so of mask tokens: D, but less for Swin.
        patch: Side P of a patch in pixels.
        stride: Side in pixels of what one feature stands for: the patch, but 32 for Swin.
        grid: Features per column and row, on which masks are counted: image size / stride.
        token_grid: Patches per column and row: image size / patch.
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
        """Features of whole images, normalised (B, C, H, W); ``layers`` as in ``forward``.

        Raises:
            ConfigError: Images of another size or number of channels than the encoder's.
        """
        needed = (self.channels, *self.image_size)
        if tuple(images.shape[1:]) != needed:
            raise ConfigError(
                f"This encoder takes images of {_by(needed)} (channels, height, width) and was "
                f"given {_by(tuple(images.shape[1:]))}. Resize them, or build it for that size."
            )
        tokens = self.project(patchify(images, self.patch))
        return self(tokens, None, self.token_grid, layers)

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
        grid: tuple[int, int],
        layers: tuple[int, ...] = (),
    ) -> Features:
        """Encode projected patches.

        Args:
            tokens: What ``project`` returned, or mask tokens among it (B, L, D).
            index: Place of each token on the grid, row-major (B, L) int64; None: all N in order.
            grid: ``token_grid``.
            layers: Numbers, from 0, of blocks whose output is wanted too.
        """
        raise NotImplementedError

    def _check_grid(self, grid: tuple[int, int]) -> None:
        if tuple(grid) != self.token_grid:
            raise ConfigError(
                f"This encoder was built for {_by(self.token_grid)} patches of {self.patch} pixels "
                f"and was given {_by(grid)}. Bring the images to {_by(self.image_size)} pixels."
            )

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
        return {
            name: (role.get(id(p), "vector" if p.ndim <= 1 else "weight"), depth.get(id(p), 0))
            for name, p in self.named_parameters()
        }

    def _relative_tables(self) -> list[nn.Parameter]:
        return []

    def _by_depth(self) -> list[tuple[int, list[nn.Parameter]]]:
        blocks = [(n, list(block.parameters())) for n, block in enumerate(self.layers, start=1)]
        return [*blocks, (self.depth + 1, list(self.net.norm.parameters()))]

    def timm_state(self) -> dict[str, Tensor]:
        """Weights of the deployed timm model, by timm's names: none left over, none missing."""
        return dict(self.net.state_dict())

    def load_timm_state(self, state: dict[str, Tensor]) -> None:
        """Load what ``timm_state`` wrote.

        Raises:
            CheckpointError: A name is missing or unexpected, or a shape differs.
        """
        self._check_state(state)
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
