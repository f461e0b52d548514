"""From an extra's config to the extra."""

from simmim.config.extra import ExtraConfig, LayoutExtra
from simmim.extras.extra import Extra
from simmim.extras.layout import Layout
from simmim.tensors.parts import Parts


def build_extra(config: ExtraConfig, parts: Parts) -> Extra:
    """A further loss of a run."""
    match config:
        case LayoutExtra():
            return Layout(config, parts)
