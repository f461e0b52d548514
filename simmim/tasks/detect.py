"""Fine-tuning to find objects: an encoder and a detector on images with boxes."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from simmim.config.finetune import DetectConfig
from simmim.config.optim import Role
from simmim.data.loading.images import ImageSet
from simmim.evaluate.precision import Precision
from simmim.models.build import build_encoder
from simmim.models.encoder import Encoder
from simmim.tasks.detections import Detections
from simmim.tasks.detector import Detector, save_detector
from simmim.tensors.batch import Batch, unpack_masks
from simmim.tensors.patches import normalise
from simmim.training.parallel import whole
from simmim.training.task import Task
from simmim.training.world import World

LEAST = 1.0
"""Least width and height, in pixels of the view, of a box that is learned from."""
NAMES = {
    "loss_objectness": "objectness_loss",
    "loss_rpn_box_reg": "proposal_loss",
    "loss_classifier": "class_loss",
    "loss_box_reg": "box_loss",
    "loss_mask": "mask_loss",
    "classification": "class_loss",
    "bbox_regression": "box_loss",
    "bbox_ctrness": "centre_loss",
}
"""What torchvision calls the parts of the loss, and what metrics.jsonl does."""


class DetectTask(Task):
    """Find objects, by the sum of the losses of torchvision's detector.

    Which proposals are learned from is drawn from torch's own generator, which is set for each
    micro-batch as for dropout.

    Args:
        detector: What is trained.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__(detector)
        self.detector = detector

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The sum, and its parts, of a batch with boxes."""
        found = self.call(self.inputs(batch), targets(batch))
        parts = {NAMES[name]: value.float() for name, value in found.items()}
        return {"loss": sum(parts.values()), **parts}  # type: ignore[dict-item]

    def inputs(self, batch: Batch) -> Tensor:
        """See ``Task``."""
        return normalise(batch.images, self.detector.pixels)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the encoder, and all on top of it beside its final norm."""
        pyramid = self.detector.net.backbone
        roles = {f"net.backbone.{name}": role for name, role in pyramid.roles().items()}
        top = self.encoder.depth + 1
        for name, parameter in self.detector.named_parameters():
            roles.setdefault(name, ("vector" if parameter.ndim <= 1 else "weight", top))
        return roles

    def deploy(self, run: Path, lineage: dict[str, object], world: World) -> None:
        """See ``Task``."""
        state = whole(self.detector.timm_state(), world)
        world.write(lambda: save_detector(run, self.detector, lineage, state))


def begin_task(
    config: DetectConfig,
    start: Encoder | None,
    size: tuple[int, int],
    images: ImageSet,
    *,
    classes: Sequence[str],
    world: World,
) -> DetectTask:
    """A detector on the device, on a copy of an encoder or on one of random weights.

    Args:
        config: How to train; its encoder is that of ``start``.
        start: Gives the encoder its weights; None: they are random.
        size: Height and width in pixels.
        images: Tell how they are read.
        classes: Names of the classes.
        world: The processes.
    """
    pixels = images.pixels
    encoder = build_encoder(config.encoder, image_size=size, channels=pixels.channels)
    if start is not None:
        encoder.load_timm_state(start.timm_state())
    kind, window = config.task.detector, config.task.window
    detector = Detector(encoder, pixels, classes, kind, window)
    return DetectTask(detector.to(world.device))


def targets(batch: Batch) -> list[dict[str, Tensor]]:
    """Boxes, classes and masks of each image: no crowds, nor what a view hardly shows.

    Where masks are asked for, objects that cover no pixel are not among them.
    """
    assert batch.boxes is not None
    assert batch.categories is not None
    assert batch.valid is not None
    assert batch.crowd is not None
    sides = batch.boxes[..., 2:] - batch.boxes[..., :2]
    kept = batch.valid & ~batch.crowd & (sides >= LEAST).all(-1)
    if batch.masks is not None:
        kept &= batch.masks.flatten(2).any(-1).bool()
    rows = zip(batch.boxes, batch.categories, kept, strict=True)
    found = [{"boxes": boxes[row], "labels": labels[row]} for boxes, labels, row in rows]
    if batch.masks is not None:
        for each, bits, row in zip(found, batch.masks, kept, strict=True):
            each["masks"] = unpack_masks(bits[row], batch.images.shape[3])
    return found


def scores_of(found: Detections, boxes: Precision) -> dict[str, float]:
    """Average precision of boxes and of masks, by the names in metrics.jsonl."""
    scores = {"ap": boxes.ap, "ap50": boxes.ap50}
    if found.masked:
        masks = found.score_masks()
        scores |= {"ap_mask": masks.ap, "ap50_mask": masks.ap50}
    return scores
