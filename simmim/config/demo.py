"""The demo's settings, chosen by measurement (benchmarks/demo_search.py)."""

from dataclasses import replace
from typing import TypeVar

from simmim.config.augment import LabelledAugmentConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import ClassifyConfig, WholeImageConfig
from simmim.config.recipes import simmim_fast
from simmim.config.run import PretrainConfig, SystemConfig

C = TypeVar("C", bound=WholeImageConfig)

MINUTES = 3.5
"""Of pretraining, where the user does not say."""
LABELS_PER_CLASS = 30
"""Labelled photos of each class in a draw."""
CURVE = (2, 5, 10, 30, 100)
"""Labelled photos of each class along the label curve."""
DRAW_SECONDS = 50.0
"""What measuring one draw takes on two quiet cores."""


def pretraining() -> PretrainConfig:
    """The `simmim-fast` recipe with a small encoder, as the runs are short (docs/fast.md)."""
    return replace(
        simmim_fast(),
        cache="off",  # the photos are hardly larger than the views: nothing would be gained
        encoder=EncoderConfig(
            model="vit_tiny_patch16_224",
            image_size=(64, 64),
            patch_size=8,
            position="fixed",
            arguments={"depth": 4},
        ),
    )


def few_labels(usual: C) -> C:
    """How images are told as wholes from few labels, whatever the encoder that is started from.

    Of the settings tried the best for a pretrained encoder; from scratch none was clearly better.
    """
    return replace(
        usual,
        batch_size=32,
        optim=replace(usual.optim, layer_decay=0.8),
        encoder=replace(usual.encoder, drop_path=0.0),
        augment=LabelledAugmentConfig(
            scale=(0.5, 1.0), rand_augment=0, erasing=0.0, mixup=0.0, cutmix=0.0
        ),
    )


def classifying(data: str) -> ClassifyConfig:
    """How the demo's classifiers are trained, pretrained and from scratch alike."""
    usual = few_labels(ClassifyConfig(data=(data,), init_from="none"))
    optim = replace(usual.optim, lr=4e-3)
    return replace(usual, epochs=10, optim=optim, system=SystemConfig(workers=0))
