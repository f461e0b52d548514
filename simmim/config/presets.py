"""Published settings of fine-tuning, by method and encoder; those of ImageNet-1K are here."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simmim.config.augment import LabelledAugmentConfig
from simmim.config.encoder import EncoderConfig, Size
from simmim.config.finetune import ClassifyConfig, FinetuneConfig
from simmim.config.nearest import did_you_mean
from simmim.config.object_presets import OBJECT_PRESETS, ObjectPreset
from simmim.config.optim import OptimConfig
from simmim.config.scene_presets import SCENE_PRESETS, ScenePreset
from simmim.errors import ConfigError

DATA = "imagenet/train --val imagenet/val"


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings as they were published, and what came of them there.

    Attributes:
        start: What they start from: a source of weights, or words in capitals for one.
        epochs: Passes over the images.
        warmup: Of them, in epochs.
        rate: Peak rate at ``batch`` images a step.
        batch: Images a step.
        layer_decay: See ``OptimConfig``.
        drop_path: See ``EncoderConfig``.
        final: Rate at the end, where one is told.
        clip: Largest gradient norm; None: not clipped.
        image_size: Height and width, where they are not those of the weights.
        accuracy: Share of the validation images that was right, published.
        source: Where all this is from.
    """

    start: str
    epochs: int
    warmup: int
    rate: float
    batch: int
    layer_decay: float
    drop_path: float
    final: float = 0.0
    clip: float | None = None
    image_size: Size | None = None
    accuracy: float
    source: str

    def config(self, init_from: str = "") -> ClassifyConfig:
        """What a fine-tuning begins with; ``init_from`` is still to be given."""
        usual = ClassifyConfig(init_from=init_from, data=())
        return replace(
            usual,
            epochs=float(self.epochs),
            batch_size=self.batch,
            encoder=EncoderConfig(drop_path=self.drop_path, image_size=self.image_size),
            augment=LabelledAugmentConfig(rand_augment=9, erasing=0.25, mixup=0.8, cutmix=1.0),
            optim=OptimConfig(
                lr=self.rate * 256 / self.batch,
                betas=(0.9, 0.999),
                weight_decay=0.05,
                warmup_epochs=float(self.warmup),
                warmup_share=self.warmup / self.epochs,
                final=self.final / self.rate,
                clip=self.clip,
                layer_decay=self.layer_decay,
            ),
        )

    @property
    def expected(self) -> str:
        """What came of it, in as many digits as were published."""
        return f"{100 * self.accuracy:.4g} %, {self.source}"

    def command(self, name: str) -> str:
        """The whole command."""
        return f"simmim finetune {DATA} --preset {name} --from {self.start}"


def _simmim(start: str, *, layer_decay: float, drop_path: float, accuracy: float) -> Preset:
    return Preset(
        start=start, epochs=100, warmup=20, rate=5e-3, batch=2048,  # 1.25e-3 per 512
        layer_decay=layer_decay, drop_path=drop_path, final=1e-6,  # 2.5e-7 per 512
        clip=5.0, image_size=(224, 224), accuracy=accuracy,
        source="arXiv:2111.09886, microsoft/SimMIM",
    )  # fmt: skip


def _mae(
    start: str, *, epochs: int, rate: float, layer_decay: float, drop_path: float, accuracy: float
) -> Preset:
    return Preset(
        start=start, epochs=epochs, warmup=5, rate=4 * rate, batch=1024,
        layer_decay=layer_decay, drop_path=drop_path, accuracy=accuracy,
        source="arXiv:2111.06377, facebookresearch/mae",
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    "simmim-vit-b": _simmim(
        "simmim_pretrain__vit_base__img224__800ep.pth",
        layer_decay=0.65, drop_path=0.1, accuracy=0.838,
    ),
    "simmim-swin-b": _simmim("WEIGHTS", layer_decay=0.8, drop_path=0.1, accuracy=0.840),
    "simmim-swin-l": _simmim("WEIGHTS", layer_decay=0.7, drop_path=0.2, accuracy=0.854),
    "mae-vit-b": _mae(
        "timm:vit_base_patch16_224.mae",
        epochs=100, rate=5e-4, layer_decay=0.65, drop_path=0.1, accuracy=0.8366,
    ),
    "mae-vit-l": _mae(
        "timm:vit_large_patch16_224.mae",
        epochs=50, rate=1e-3, layer_decay=0.75, drop_path=0.2, accuracy=0.8595,
    ),
    "mae-vit-h": _mae(
        "timm:vit_huge_patch14_224.mae",
        epochs=50, rate=1e-3, layer_decay=0.75, drop_path=0.3, accuracy=0.8693,
    ),
    "beit-b": Preset(
        start="WEIGHTS", epochs=100, warmup=20, rate=4e-3, batch=1024, layer_decay=0.65,
        drop_path=0.1, final=1e-6, accuracy=0.837, source="arXiv:2106.08254, microsoft/unilm",
    ),
    "beit-l": Preset(
        start="WEIGHTS", epochs=50, warmup=5, rate=1e-3, batch=1024, layer_decay=0.75,
        drop_path=0.2, final=1e-6, accuracy=0.860, source="arXiv:2106.08254, microsoft/unilm",
    ),
}  # fmt: skip
"""By name; the rates and batches are those of the authors, the pairs of a mix are our own."""

OF_TASK: dict[str, Mapping[str, Preset | ScenePreset | ObjectPreset]] = {
    "classify": PRESETS,
    "segment": SCENE_PRESETS,
    "detect": OBJECT_PRESETS,
}
"""The presets of each task that has some."""
NAMES = tuple(dict.fromkeys(name for presets in OF_TASK.values() for name in presets))


def preset_named(name: str, task: str, init_from: str = "") -> FinetuneConfig:
    """What a fine-tuning with a preset begins with.

    Raises:
        ConfigError: There is none of that name, or the task is another one.
    """
    if name not in NAMES:
        near = did_you_mean(name, NAMES)
        raise ConfigError(f"there is no preset {name!r}.{near} Known: {', '.join(NAMES)}.")
    presets = OF_TASK.get(task, {})
    if name not in presets:
        tasks = " or ".join(f"--task {each}" for each, known in OF_TASK.items() if name in known)
        known = f" Of {task} there are {', '.join(presets)}." if presets else ""
        raise ConfigError(f"the preset {name} is of {tasks}, not of {task}.{known}")
    return presets[name].config(init_from)


def check_start(config: FinetuneConfig) -> FinetuneConfig:
    """The config of a preset, once it says what to start from.

    Raises:
        ConfigError: It does not.
    """
    if not config.init_from:
        raise ConfigError("--from is missing: a preset says how to train, and not from what.")
    return config
