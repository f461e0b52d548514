"""Published settings of segmentation on ADE20K, by method and encoder (docs/segment.md)."""

from dataclasses import dataclass, replace

from simmim.config.augment import AugmentConfig
from simmim.config.encoder import EncoderConfig
from simmim.config.finetune import SegmentConfig
from simmim.config.optim import OptimConfig
from simmim.config.task import Segmentation

IMAGES = "ADEChallengeData2016/images"
DATA = f"{IMAGES}/training --val {IMAGES}/validation"
STEPS, BATCH, WARMUP = 160_000, 16, 1_500
EPOCHS = STEPS * BATCH / 20_210
"""Steps, images of each, steps of the warm-up, and passes over ADE20K's training images."""
ZOOM = (2 / 3, 8 / 3)
"""Half to twice a shorter side of 512 pixels, of photos of 4:3 that fit with their longer one."""


@dataclass(frozen=True, kw_only=True)
class ScenePreset:
    """Settings of UPerNet as they were published, and what came of them there.

    Attributes:
        start: What they start from: a source of weights, or words in capitals for one.
        rate: Peak rate at 16 images a step.
        layer_decay: See ``OptimConfig``.
        drop_path: See ``EncoderConfig``.
        width: Channels of UPerNet.
        weight_decay: See ``OptimConfig``.
        side: Of the square crops in pixels.
        miou: Mean IoU on the validation images, published.
        source: Where all this is from.
        but: What of it is from elsewhere.
    """

    start: str
    rate: float
    layer_decay: float
    drop_path: float
    width: int
    weight_decay: float = 0.05
    side: int = 512
    miou: float
    source: str
    but: str = ""

    def config(self, init_from: str = "") -> SegmentConfig:
        """What a fine-tuning begins with; ``init_from`` is still to be given."""
        return replace(
            SegmentConfig(init_from=init_from, data=()),
            epochs=EPOCHS,
            batch_size=BATCH,
            task=Segmentation(width=self.width, ignore=0, dice=0.0, jitter=0.5),
            encoder=EncoderConfig(drop_path=self.drop_path, image_size=(self.side, self.side)),
            augment=AugmentConfig(zoom=ZOOM),
            optim=OptimConfig(
                lr=self.rate * (256 / BATCH) ** 0.5,
                betas=(0.9, 0.999),
                weight_decay=self.weight_decay,
                no_decay=("vector", "mask"),
                warmup_epochs=None,
                warmup_share=WARMUP / STEPS,
                schedule="linear",
                initial=1e-6,
                clip=None,
                layer_decay=self.layer_decay,
            ),
        )

    @property
    def expected(self) -> str:
        """What came of it, in words."""
        return f"mean IoU {100 * self.miou:.1f} %{self.but and f' ({self.but})'}, {self.source}"

    def command(self, name: str) -> str:
        """The whole command."""
        return f"simmim finetune {DATA} --task segment --preset {name} --from {self.start}"


_MAE = "arXiv:2111.06377, implus/mae_segmentation"
_BEIT = "arXiv:2106.08254, microsoft/unilm"

SCENE_PRESETS: dict[str, ScenePreset] = {
    "mae-vit-b": ScenePreset(
        start="timm:vit_base_patch16_224.mae", rate=1e-4, layer_decay=0.65, drop_path=0.1,
        width=768, miou=0.481, source=_MAE,
    ),
    "mae-vit-l": ScenePreset(
        start="timm:vit_large_patch16_224.mae", rate=1e-4, layer_decay=0.75, drop_path=0.2,
        width=1024, miou=0.536, source=_MAE,
        but="its rate is not published: this is ViT-B's, decay and drop path are ImageNet's",
    ),
    "beit-b": ScenePreset(
        start="timm:beit_base_patch16_224.in22k_ft_in22k", rate=3e-5, layer_decay=0.9,
        drop_path=0.1, width=768, side=640, miou=0.536, source=_BEIT,
    ),
    "beit-l": ScenePreset(
        start="timm:beit_large_patch16_224.in22k_ft_in22k", rate=2e-5, layer_decay=0.95,
        drop_path=0.2, width=1024, side=640, miou=0.567, source=_BEIT,
    ),
    "simmim-swin-b": ScenePreset(
        start="WEIGHTS", rate=6e-5, layer_decay=1.0, drop_path=0.3, weight_decay=0.01, width=512,
        miou=0.481, source="arXiv:2103.14030, microsoft/Swin-Transformer",
        but="of Swin-B from ImageNet's labels: SimMIM's own is not published",
    ),
}  # fmt: skip
"""By name; what differs from the publications is in docs/segment.md."""
