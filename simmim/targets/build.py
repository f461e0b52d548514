"""From a target's config to the target."""

from simmim.config.target import TargetConfig
from simmim.targets.pixels import Pixels, Target


def build_target(config: TargetConfig, patch: int, channels: int) -> Target:
    """The target of patches of ``patch`` pixels a side and ``channels`` channels."""
    return Pixels(config, patch, channels)
