"""What config.json and preprocessor_config.json of a Hugging Face folder say."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from simmim.config.resolved import PixelFormat
from simmim.data.audit.ranges import DEPTHS
from simmim.errors import CheckpointError
from simmim.interop.checkpoint import HALVES, IMAGENET, LARGEST, eight_bit

USUAL = {"vit": HALVES, "beit": HALVES, "vit_mae": IMAGENET, "swin": IMAGENET, "dinov2": IMAGENET}
"""How images are normalised for the published weights of each kind of model."""
PREPROCESSOR = "_preprocessor"
"""Where a caller puts the content of preprocessor_config.json."""


class HubConfig:
    """A config.json, in which each value is checked when it is asked for.

    What is absent has the default of transformers, as files of older versions lack some fields.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given

    @property
    def kind(self) -> str:
        """The ``model_type``."""
        return str(self.given.get("model_type"))

    def count(self, name: str, usual: int | None = None, most: int = 1_000_000) -> int:
        """A whole number from 1.

        Raises:
            CheckpointError: It is something else, or absent though it has no usual value.
        """
        value = self.given.get(name, usual)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise CheckpointError(
                f"config.json has {name} {value!r}; it should be a whole number from 1 to {most:,}."
            )
        return value

    def counts(self, name: str, usual: list[int]) -> list[int]:
        """A list of whole numbers from 1."""
        value = self.given.get(name, usual)
        if not isinstance(value, list) or not 1 <= len(value) <= 10:
            raise CheckpointError(f"config.json has {name} {value!r}; it should be a short list.")
        return [HubConfig({name: item}).count(name) for item in value]

    def number(self, name: str, usual: float) -> float:
        """A finite number."""
        value = self.given.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
            raise CheckpointError(f"config.json has {name} {value!r}; it should be a number.")
        return float(value)

    def flag(self, name: str, *, usual: bool) -> bool:
        """True or false."""
        value = self.given.get(name, usual)
        if not isinstance(value, bool):
            raise CheckpointError(f"config.json has {name} {value!r}; it should be true or false.")
        return value

    def patch(self, usual: int) -> int:
        """Side of a patch in pixels."""
        value = self.given.get("patch_size", usual)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        if isinstance(value, list):
            raise CheckpointError(f"the patches are {value} pixels; only square ones can be read.")
        return HubConfig({"patch_size": value}).count("patch_size")

    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        value = self.given.get("image_size", 224)
        if not isinstance(value, list):
            value = [value, value]
        if len(value) != 2:
            raise CheckpointError(
                f"config.json has image_size {value!r}; it should be one side or two."
            )
        height, width = (
            HubConfig({"image_size": side}).count("image_size", most=LARGEST) for side in value
        )
        return height, width

    def grid(self, patch: int) -> tuple[int, int]:
        """Patches per column and row."""
        height, width = self.image_size()
        if min(height, width) < patch:
            raise CheckpointError(
                f"config.json has image_size {height}×{width}, less than its patch of {patch}."
            )
        return height // patch, width // patch

    def activation(self, known: Mapping[str, str]) -> str:
        """Timm's name of the activation.

        Raises:
            CheckpointError: It is not among the ``known``.
        """
        value = str(self.given.get("hidden_act", "gelu"))
        if value not in known:
            raise CheckpointError(
                f"config.json has hidden_act {value!r}; {self.kind} can be read here with "
                f"{', '.join(known)}."
            )
        return known[value]

    def pixels(self, channels: int) -> tuple[PixelFormat, list[str]]:
        """How images are normalised, and what was assumed of it.

        ``((value - low)/(high - low) - mean)/std`` with ``low`` 0 and ``high`` 1/rescale_factor.
        """
        given = self.given.get(PREPROCESSOR)
        usual = USUAL.get(self.kind, IMAGENET)
        if not isinstance(given, Mapping):
            assumed = eight_bit(usual.mean, usual.std, channels)
            return assumed, [
                f"no preprocessor_config.json: mean {_few(assumed.mean)} and standard deviation "
                f"{_few(assumed.std)} were assumed, as is usual for {self.kind}"
            ]
        factor = HubConfig(given).number("rescale_factor", 1 / 255)
        if not given.get("do_rescale", True):
            factor = 1.0
        if factor <= 0:
            raise CheckpointError(f"preprocessor_config.json has rescale_factor {factor:g}.")
        high = 1 / factor
        if math.isclose(high, round(high), rel_tol=1e-9):
            high = float(round(high))
        plain = not given.get("do_normalize", True)
        mean = (0.0,) if plain else _numbers(given.get("image_mean", list(usual.mean)))
        std = (1.0,) if plain else _numbers(given.get("image_std", list(usual.std)))
        if min(std) <= 0:
            raise CheckpointError(f"preprocessor_config.json has image_std {list(std)}.")
        depth = next((f"{bits}-bit" for bits in DEPTHS if high == 2**bits - 1), "float")
        pixels = eight_bit(mean, std, channels)
        return replace(pixels, high=(high,) * channels, depth=depth), []


def _finite(value: float) -> bool:
    return abs(value) < math.inf  # false for nan


def _numbers(given: Any) -> tuple[float, ...]:
    values = given if isinstance(given, list) else [given]
    if not 1 <= len(values) <= 10_000:
        raise CheckpointError("preprocessor_config.json has no image_mean or image_std.")
    return tuple(HubConfig({"image_mean": value}).number("image_mean", 0.0) for value in values)


def _few(values: tuple[float, ...]) -> str:
    shown = values if len(set(values)) > 1 else values[:1]
    return ", ".join(f"{value:g}" for value in shown[:4])
