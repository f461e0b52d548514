"""From a target's config to the target."""

from simmim.config.target import PixelTarget, TargetConfig
from simmim.targets.pixels import Pixels
from simmim.targets.target import Target
from simmim.tensors.parts import Parts


def build_target(config: TargetConfig, parts: Parts) -> Target:
    """The target of a run."""
    match config:
        case PixelTarget():
            return Pixels(config, parts.patch, parts.pixels.channels)
