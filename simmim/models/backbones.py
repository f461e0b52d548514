"""timm's ViT-like models behind the encoder's contract."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.beit import Beit, gen_relative_position_index
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer, WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from simmim.config.encoder import EncoderConfig
from simmim.errors import ConfigError
from simmim.models.attention import prefers_plain
from simmim.models.encoder import Encoder
from simmim.models.resample import Grid, resample_positions, spread, spread_table
from simmim.tensors.features import Features

TABLE = "blocks.{}.attn.relative_position_bias_table"


def take(table: Tensor, index: Tensor | None) -> Tensor:
    """Rows of ``table`` (N, D) at ``index`` (B, L): (B, L, D); all of them, (1, N, D), at None."""
    # embedding rather than indexing: its gradient needs no slow, unordered accumulation.
    return table[None] if index is None else F.embedding(index, table)


class TokenEncoder(Encoder):
    """An encoder whose blocks take any set of tokens, so that patches can be left out."""

    biased: ClassVar[bool] = False
    """True where a trained bias is added to the attention's logits."""

    def __init__(self, net: nn.Module, **keywords: Any) -> None:
        super().__init__(net, **keywords)
        self._fused: list[Any] = [m for m in net.modules() if getattr(m, "fused_attn", False)]

    def forward(
        self,
        tokens: Tensor,
        index: Tensor | None,
        grid: Grid,
        layers: tuple[int, ...] = (),
    ) -> Features:
        """See ``Encoder.forward``."""
        grid = self._check_grid(tokens, index, grid)
        x = self.enter(tokens, index, grid)
        self._choose_attention(x)
        prefix = x.shape[1] - tokens.shape[1]
        outputs: dict[int, Tensor] = {}
        places = self._places(index, grid)
        for number, (block, place) in enumerate(zip(self.net.blocks, places, strict=True)):
            x = block(x, **place)
            if number in layers:
                outputs[number] = x[:, prefix:]
        x = self.net.norm(x)
        return Features(x[:, :prefix], x[:, prefix:], tuple(outputs[n] for n in layers))

    def _choose_attention(self, x: Tensor) -> None:
        fused = not prefers_plain(x, bias=self.biased)
        for attention in self._fused:
            if attention.fused_attn != fused:
                attention.fused_attn = fused

    def enter(self, tokens: Tensor, index: Tensor | None, grid: Grid) -> Tensor:
        """Prefix and patch tokens with their absolute positions (B, R + L, D)."""
        pos_embed = self.net.pos_embed
        prefix = torch.cat([tokens.new_empty(1, 0, self.width), *self.prefix_tokens()], dim=1)
        if pos_embed is not None:
            if grid != self.token_grid:
                pos_embed = resample_positions(pos_embed, self.token_grid, grid, "timm")
            before = pos_embed.shape[1] - grid[0] * grid[1]  # R, or 0: no_embed_class
            if before:
                prefix = prefix + pos_embed[:, :before]
            tokens = tokens + take(pos_embed[0, before:], index)
        x = torch.cat([prefix.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.net.pos_drop(x)

    def _places(self, index: Tensor | None, grid: Grid) -> Iterator[dict[str, Any]]:
        """What each block is told, beside its tokens, of where they are."""
        raise NotImplementedError


class ViTEncoder(TokenEncoder):
    """timm's VisionTransformer: absolute positions only."""

    pooling: ClassVar[dict[str, Any]] = {"global_pool": "avg", "fc_norm": False}

    @property
    def relates(self) -> bool:
        """See ``Encoder.relates``."""
        return False

    def enter(self, tokens: Tensor, index: Tensor | None, grid: Grid) -> Tensor:
        """See ``TokenEncoder.enter``."""
        return self.net.norm_pre(super().enter(tokens, index, grid))

    def _places(self, index: Tensor | None, grid: Grid) -> Iterator[dict[str, Any]]:  # noqa: ARG002
        for _ in self.net.blocks:
            yield {}


class DistilledEncoder(ViTEncoder):
    """timm's VisionTransformerDistilled: its own pooling reads the class and distillation token."""

    pooling: ClassVar[dict[str, Any]] = {}


class EvaEncoder(TokenEncoder):
    """timm's Eva (EVA-02, DINOv3, …): rotary positions, gathered where patches are left out."""

    pooling: ClassVar[dict[str, Any]] = {"global_pool": "avg", "use_fc_norm": False}

    @classmethod
    def plan(cls, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``Encoder.plan``; in training the rotary positions are those of any grid."""
        deployed, built = super().plan(arguments)
        return deployed, {**built, "dynamic_img_size": True}

    @property
    def relates(self) -> bool:
        """See ``Encoder.relates``."""
        return self.net.rope is not None

    def enter(self, tokens: Tensor, index: Tensor | None, grid: Grid) -> Tensor:
        """See ``TokenEncoder.enter``."""
        return self.net.norm_pre(super().enter(tokens, index, grid))

    def _places(self, index: Tensor | None, grid: Grid) -> Iterator[dict[str, Any]]:
        rope = self.net.rope
        if rope is None:
            yield from ({} for _ in self.net.blocks)
            return
        table = self._rotary(grid)
        if table.ndim == 2:  # N d, the same for all blocks
            gathered = table if index is None else take(table, index)[:, None]  # B 1 L d
            yield from ({"rope": gathered} for _ in self.net.blocks)
            return
        for own in table:  # heads N d, one for each block
            yield {"rope": own if index is None else own[:, index].transpose(0, 1)}  # B heads L d

    def _rotary(self, grid: Grid) -> Tensor:
        rope = self.net.rope
        drawn = self.training and getattr(rope, "aug_active", False)
        if drawn or self._relative_tables():
            return rope.get_embed(shape=grid)
        return self._once(grid, lambda: (rope.get_embed(shape=grid),))[0]

    def _relative_tables(self) -> list[nn.Parameter]:
        return [] if self.net.rope is None else list(self.net.rope.parameters())


class BeitEncoder(TokenEncoder):
    """timm's Beit: a bias on attention for each pair of places, from a table of relative ones.

    In training all blocks share one table (SimMIM), unless the argument ``use_rel_pos_bias`` asks
    for one in each. The deployed model has one in each block, to which the shared one is copied.
    Load weights before building an optimizer: tables that differ by block end the sharing.

    Attributes:
        tables: One table, or one for each block: ((2h - 1)(2w - 1) + 3, heads).
    """

    pooling: ClassVar[dict[str, Any]] = {"global_pool": "token"}  # "avg" would move the final norm
    biased: ClassVar[bool] = True

    def __init__(self, net: nn.Module, **keywords: Any) -> None:
        super().__init__(net, **keywords)
        heads = self.net.blocks[0].attn.num_heads
        pairs = (2 * self.grid[0] - 1) * (2 * self.grid[1] - 1) + 3  # the last three: class token
        self.tables = nn.ParameterList([torch.zeros(pairs, heads)])
        self.register_load_state_dict_pre_hook(_fit_tables)

    @classmethod
    def plan(cls, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``Encoder.plan``: the tables are ours in training and timm's when deployed."""
        deployed, built = super().plan(arguments)
        if not deployed.pop("use_shared_rel_pos_bias", True) or not deployed.get(
            "use_rel_pos_bias", True
        ):
            raise ConfigError(
                "The BEiT models are trained with relative positions, shared by all blocks, or one "
                "table for each with use_rel_pos_bias=True; they cannot be turned off."
            )
        deployed["use_rel_pos_bias"] = True
        own = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": False}
        return deployed, {**built, **own}

    def start(self, config: EncoderConfig) -> None:
        """See ``Encoder.start``."""
        self.set_tables(self.depth if config.arguments.get("use_rel_pos_bias") else 1)
        super().start(config)

    def set_tables(self, count: int) -> None:
        """Share one table (``count`` 1), or give each block its own, equal ones to begin with."""
        if count != len(self.tables):
            first = self.tables[0].detach()
            self.tables = nn.ParameterList([first.clone() for _ in range(count)])

    def _places(self, index: Tensor | None, grid: Grid) -> Iterator[dict[str, Any]]:
        device = self.tables[0].device
        relative, *axes = self._once(grid, lambda: self._relations(grid, device))
        pairs = relative[None]  # 1 N+1 N+1
        if index is not None:
            places = F.pad(index + 1, (1, 0))  # B L+1, the class token first
            pairs = relative[places[:, :, None], places[:, None, :]]
        bias = None
        for number in range(self.depth):
            if number < len(self.tables):
                table = self.tables[number]
                if axes:
                    table = spread_table(table, *axes)
                bias = F.embedding(pairs, table).permute(0, 3, 1, 2).contiguous()
            yield {"shared_rel_pos_bias": bias}

    def _relations(self, grid: Grid, device: torch.device) -> tuple[Tensor, ...]:
        """Row of the table for each pair of places, and what resamples the table for the grid."""
        axes = () if grid == self.token_grid else spread(self.token_grid, grid, "timm")
        return tuple(t.to(device) for t in (gen_relative_position_index(grid), *axes))

    def places(self) -> dict[str, Grid]:
        """See ``Encoder.places``."""
        return super().places() | {TABLE.format(n): self.token_grid for n in range(self.depth)}

    def _relative_tables(self) -> list[nn.Parameter]:
        return list(self.tables)

    def _by_depth(self) -> list[tuple[int, list[nn.Parameter]]]:
        shared = len(self.tables) == 1
        tables = [(0 if shared else n, [table]) for n, table in enumerate(self.tables, start=1)]
        return super()._by_depth() + tables

    def timm_state(self) -> dict[str, Tensor]:
        """See ``Encoder.timm_state``; a shared table is copied to every block."""
        tables = [self.tables[n % len(self.tables)] for n in range(self.depth)]
        return super().timm_state() | {
            TABLE.format(n): table.detach().clone() for n, table in enumerate(tables)
        }

    def _load(self, state: dict[str, Tensor]) -> None:
        """Equal tables stay shared, others end the sharing."""
        names = [TABLE.format(n) for n in range(self.depth)]
        if any(not torch.equal(state[name], state[names[0]]) for name in names):
            self.set_tables(self.depth)
        with torch.no_grad():
            for table, name in zip(self.tables, names, strict=False):
                table.copy_(state[name])
        self.net.load_state_dict({k: v for k, v in state.items() if k not in names})


def _fit_tables(encoder: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before a state is loaded: as many tables as it has."""
    count = sum(name.startswith(f"{prefix}tables.") for name in state)
    if isinstance(encoder, BeitEncoder) and count in {1, encoder.depth}:
        encoder.set_tables(count)


class SwinEncoder(Encoder):
    """timm's SwinTransformer: windows of attention and merged patches, so the whole grid only.

    ``token_grid`` counts patches, ``grid`` the features of the last stage. Another grid is cut into
    the same windows, filled up at its edge, as by timm with ``strict_img_size=False``.
    """

    whole: ClassVar[bool] = True
    stages: ClassVar[int] = 4  # as in every Swin of timm

    def __init__(self, net: nn.Module, **keywords: Any) -> None:
        super().__init__(net, **keywords)
        self.stride = self.patch * 2 ** (len(self.net.layers) - 1)
        self.grid = (self.image_size[0] // self.stride, self.image_size[1] // self.stride)
        for block in self.layers:
            block.get_attn_mask = partial(self._mask, block)  # pyright: ignore

    @classmethod
    def plan(cls, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """See ``Encoder.plan``; in training the windows' masks are those of any grid."""
        deployed, built = super().plan(arguments)
        return deployed, {**built, "strict_img_size": False}

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks of all stages."""
        return [block for stage in self.net.layers for block in stage.blocks]

    def start(self, config: EncoderConfig) -> None:
        """See ``Encoder.start``; SimMIM leaves Swin as timm does, truncated normal 0.02."""
        if config.init == "xavier":
            super().start(config)

    def forward(
        self,
        tokens: Tensor,
        index: Tensor | None,
        grid: Grid,
        layers: tuple[int, ...] = (),
    ) -> Features:
        """See ``Encoder.forward``; ``layers`` come at the resolution of their stage.

        Raises:
            ConfigError: ``index`` is not None.
        """
        if index is not None:
            raise ConfigError(
                f"{self.model} needs every patch, so none can be left out of the encoder. "
                "Use a decoder that reads all tokens (--recipe simmim-paper-swin), or a ViT."
            )
        grid = self._check_grid(tokens, index, grid)
        x = tokens.unflatten(1, grid)  # B h w D
        outputs: dict[int, Tensor] = {}
        number = 0
        for stage in self.net.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                x = block(x)
                if number in layers:
                    outputs[number] = x.flatten(1, 2)
                number += 1
        patches = self.net.norm(x).flatten(1, 2)
        return Features(patches[:, :0], patches, tuple(outputs[n] for n in layers))

    def _mask(self, block: Any, x: Tensor) -> Tensor | None:
        """Which of the tokens that a shifted window of ``block`` holds do not belong together."""
        if not any(block.shift_size):
            return None
        key = (x.shape[1:3], block.window_size, block.shift_size, x.dtype)
        return self._once(key, lambda: (type(block).get_attn_mask(block, x),))[0]

    def places(self) -> dict[str, Grid]:
        """See ``Encoder.places``."""
        windows: dict[str, Any] = {
            f"{name}.relative_position_bias_table": part.window_size
            for name, part in self.net.named_modules()
            if isinstance(part, WindowAttention)
        }
        return windows

    def _relative_tables(self) -> list[nn.Parameter]:
        return [block.attn.relative_position_bias_table for block in self.layers]  # pyright: ignore

    def _by_depth(self) -> list[tuple[int, list[nn.Parameter]]]:
        depths, first = super()._by_depth(), 1
        for stage in self.net.layers:
            depths.append((first, list(stage.downsample.parameters())))
            first += len(stage.blocks)
        return depths


ADAPTERS: dict[type[nn.Module], type[Encoder]] = {
    VisionTransformer: ViTEncoder,
    VisionTransformerDistilled: DistilledEncoder,
    Eva: EvaEncoder,
    Beit: BeitEncoder,
    SwinTransformer: SwinEncoder,
}
"""The adapter of each timm class; subclasses of these have no place here."""
