"""An encoder of which the first blocks, or all, stay as they are, but for low-rank updates."""

from typing import TypeVar

from timm.layers import DropPath

from simmim.config.finetune import FinetuneConfig
from simmim.errors import ConfigError
from simmim.models.lora import add_low_rank
from simmim.training.task import Task

T = TypeVar("T", bound=Task)


def trainable(task: T, config: FinetuneConfig) -> T:
    """The task, with that much of its encoder to train which its config says.

    Raises:
        ConfigError: See ``frozen``.
    """
    if config.lora is None:
        return frozen(task, config.freeze)
    frozen(task, "all")
    add_low_rank(task.encoder.layers, config.lora)
    return task


def frozen(task: T, what: str | None) -> T:
    """The task, with that much of its encoder neither trained nor dropped in passing.

    Args:
        task: As it begins.
        what: See ``FinetuneConfig.freeze``.

    Raises:
        ConfigError: There are fewer blocks.
    """
    if what is None:
        return task
    encoder = task.encoder
    blocks = encoder.depth + 1 if what == "all" else int(what)
    if what != "all" and blocks > encoder.depth:
        raise ConfigError(
            f"--freeze {what}: the encoder has {encoder.depth} blocks. `--freeze all` leaves all "
            "of them as they are, and the final norm."
        )
    for name, (_, depth) in encoder.roles().items():
        if depth <= blocks:
            encoder.get_parameter(name).requires_grad = False
    for layer in encoder.layers[:blocks]:
        for module in layer.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
    return task


def frozen_share(task: Task) -> str:
    """How many of an encoder's weights are frozen, in words."""
    weights = list(task.encoder.parameters())
    still = sum(p.numel() for p in weights if not p.requires_grad)
    return f"{still:,} of the encoder's {sum(p.numel() for p in weights):,} weights"
