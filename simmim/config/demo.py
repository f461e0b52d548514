"""The demo's settings, chosen by measurement (benchmarks/demo_search.py)."""

from dataclasses import replace

from simmim.config.augment import LabelledAugmentConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import ClassifyConfig
from simmim.config.recipes import simmim_fast
from simmim.config.run import PretrainConfig, SystemConfig

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


def classifying(data: str) -> ClassifyConfig:
    """How the classifiers are trained, from the pretrained encoder and from scratch alike.

    Of the settings tried the best for the pretrained encoder; from scratch none was clearly better.
    """
    usual = ClassifyConfig(data=(data,), init_from="none")
    return replace(
        usual,
        epochs=10,
        batch_size=32,
        optim=replace(usual.optim, lr=4e-3, layer_decay=0.8),
        encoder=replace(usual.encoder, drop_path=0.0),
        augment=LabelledAugmentConfig(
            scale=(0.5, 1.0), rand_augment=0, erasing=0.0, mixup=0.0, cutmix=0.0
        ),
        system=SystemConfig(workers=0),
    )
