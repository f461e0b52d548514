"""From a target's config to the target."""

from simmim.config.target import CombinedTarget, HogTarget, PixelTarget, TargetConfig
from simmim.targets.combined import Combined
from simmim.targets.hog import Hog
from simmim.targets.pixels import Pixels
from simmim.targets.target import Target
from simmim.tensors.parts import Parts


def build_target(config: TargetConfig, parts: Parts) -> Target:
    """The target of a run."""
    match config:
        case PixelTarget():
            return Pixels(config, parts.patch, parts.pixels.channels)
        case HogTarget():
            return Hog(config, parts.patch, parts.pixels.channels)
        case CombinedTarget():
            built = {part.kind: build_target(part, parts) for part in config.parts}
            return Combined({kind: (built[kind], w) for kind, w in config.weighed.items()})
