"""The optimizer's and the schedule's config."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from simmim.config.checks import check_positive
from simmim.errors import ConfigError

Role = Literal["block", "weight", "vector", "position", "relative", "prefix", "mask"]
"""What a parameter is: a matrix within a block; another matrix, such as a patch projection or a
head; anything 1-d (biases, norms, scales); absolute positions; relative position tables; class
and register tokens; the mask token."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, or Muon beside it, with linear warm-up and a decay of the rate."""

    CONTINUED: ClassVar[float] = 0.5
    """The default peak rate with `--from`, as a share of that for random weights."""

    kind: Literal["adamw", "muon"] = "adamw"
    """The optimizer of matrices; all other parameters have AdamW."""
    lr: float | None = None
    """Peak rate per 256 images of global batch: times B/256 from 256 up, √(B/256) below; default:
    1.5e-4 (with Muon 1e-3), times (768/D)² for an encoder of width D below 768."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the two moment averages."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    matrices: tuple[Literal["block", "weight"], ...] = ("block",)
    """Roles of the matrices that Muon trains."""
    momentum: float = 0.95
    """Muon's decay rate of the average of gradients."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    no_decay: tuple[Role, ...] = ("vector", "position", "relative", "prefix", "mask")
    """Roles of parameters that are not decayed."""
    warmup_epochs: float | None = 40.0
    """Length of the linear warm-up, in epochs; `none`: `warmup-share` alone decides."""
    warmup_share: float = 0.05
    """The warm-up's largest share of all steps, for short runs."""
    schedule: Literal["cosine", "linear", "multistep"] = "cosine"
    """After the warm-up: a cosine or a line down to `final`, or a drop to 0.1 at 7/8 of the run."""
    initial: float = 0.0
    """The rate at the first step, as a share of the peak."""
    final: float = 0.0
    """The rate at the end of a cosine or a line, as a share of the peak."""
    clip: float | None = 1.0
    """Largest gradient norm, over all parameters; `None` does not clip."""
    layer_decay: float = 1.0
    """Rate of a block relative to the block above it; 1 trains all blocks alike."""

    def __post_init__(self) -> None:
        if self.lr is not None:
            check_positive("optim.lr", self.lr)
        check_positive("optim.eps", self.eps)
        check_positive("optim.weight_decay", self.weight_decay, zero=True)
        if self.warmup_epochs is not None:
            check_positive("optim.warmup_epochs", self.warmup_epochs, zero=True)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optim.betas must lie in [0, 1), got {self.betas}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optim.momentum must lie in [0, 1), got {self.momentum:g}.")
        if self.clip is not None:
            check_positive("optim.clip", self.clip)
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optim.layer_decay must lie in (0, 1], got {self.layer_decay:g}.")
        if not 0 <= self.warmup_share < 1:
            raise ConfigError(f"optim.warmup_share must lie in [0, 1), got {self.warmup_share:g}.")

    def base(self, width: int) -> float:
        """The peak rate per 256 images for an encoder of ``width``."""
        if self.lr is not None:
            return self.lr
        return (1e-3 if self.kind == "muon" else 1.5e-4) * max(1.0, 768 / width) ** 2

    def peak(self, batch_size: int) -> float:
        """The peak rate for a global batch of ``batch_size`` images.

        Raises:
            ConfigError: ``lr`` is still open.
        """
        if self.lr is None:
            raise ConfigError("optim.lr is open: the width of the encoder decides it.")
        ratio = batch_size / 256
        return self.lr * (ratio if ratio >= 1 else ratio**0.5)
