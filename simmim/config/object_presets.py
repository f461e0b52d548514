"""Published settings of detection on COCO, by method and encoder (docs/recipes.md)."""

from dataclasses import dataclass

from simmim.config.augment import AugmentConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import DetectConfig
from simmim.config.optim import OptimConfig
from simmim.config.task import Detection

DATA = "coco/annotations/instances_{}2017.json"
SOURCE = "arXiv:2203.16527, facebookresearch/detectron2"


@dataclass(frozen=True, kw_only=True)
class ObjectPreset:
    """ViTDet's settings of Mask R-CNN on COCO, and what came of them there (Li et al., 2022).

    Attributes:
        start: What they start from.
        layer_decay: See ``OptimConfig``.
        drop_path: See ``EncoderConfig``.
        box: Average precision of boxes, published.
        mask: That of masks.
    """

    start: str
    layer_decay: float
    drop_path: float
    box: float
    mask: float

    def config(self, init_from: str = "") -> DetectConfig:
        """What a fine-tuning begins with; ``init_from`` is still to be given."""
        batch, rate, warmup = 64, 1e-4, 250 / 184_375  # of all steps
        return DetectConfig(
            init_from=init_from,
            data=(),
            task=Detection(detector="mask-rcnn", window=14),
            epochs=100.0,
            batch_size=batch,
            encoder=EncoderConfig(drop_path=self.drop_path, image_size=(1024, 1024)),
            augment=AugmentConfig(zoom=(0.1, 2.0)),
            optim=OptimConfig(
                lr=rate / (batch / 256) ** 0.5,
                betas=(0.9, 0.999),
                weight_decay=0.1,
                no_decay=("vector", "position", "prefix", "mask"),
                warmup_epochs=None,
                warmup_share=warmup,
                schedule="multistep",
                clip=None,
                layer_decay=self.layer_decay,
            ),
        )

    @property
    def expected(self) -> str:
        """Both precisions, in as many digits as were published."""
        return f"{100 * self.box:.3g} % AP of boxes, {100 * self.mask:.3g} % of masks, {SOURCE}"

    def command(self, name: str) -> str:
        """The whole command."""
        data = f"{DATA.format('train')} --val {DATA.format('val')}"
        return f"simmim finetune {data} --task detect --preset {name} --from {self.start}"


OBJECT_PRESETS: dict[str, ObjectPreset] = {
    "vitdet-mae-vit-b": ObjectPreset(
        start="timm:vit_base_patch16_224.mae",
        layer_decay=0.7, drop_path=0.1, box=0.516, mask=0.459,
    ),
    "vitdet-mae-vit-l": ObjectPreset(
        start="timm:vit_large_patch16_224.mae",
        layer_decay=0.8, drop_path=0.4, box=0.555, mask=0.492,
    ),
}  # fmt: skip
"""By name; what differs from the publication is in docs/recipes.md."""
