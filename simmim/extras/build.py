"""From an extra's config to the extra."""

from typing import assert_never

from simmim.config.extra import ExtraConfig
from simmim.extras.extra import Extra
from simmim.tensors.parts import Parts


def build_extra(config: ExtraConfig, parts: Parts) -> Extra:  # noqa: ARG001
    """A further loss of a run."""
    match config:
        case none_left:
            assert_never(none_left)
