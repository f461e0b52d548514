"""From a mask's config to the sampler."""

from simmim.config.mask import BlockMask, MaskConfig, RandomMask
from simmim.masking.block import BlockSampler
from simmim.masking.samplers import RandomSampler, Sampler
from simmim.tensors.parts import Parts


def build_sampler(config: MaskConfig, parts: Parts) -> Sampler:
    """The sampler of a run's masks."""
    where = (parts.grid, parts.patch, parts.seed)
    match config:
        case RandomMask():
            return RandomSampler(config, *where)
        case BlockMask():
            return BlockSampler(config, *where)
