"""What is trained to answer for images as a whole: a class, several of them, or a number."""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from simmim.config.optim import Role
from simmim.tasks.average import Averaged
from simmim.tasks.classifier import Classifier, save_classifier
from simmim.tasks.mixture import Mixture
from simmim.tasks.regressor import Regressor
from simmim.tensors.batch import Batch
from simmim.tensors.parts import usual_roles
from simmim.tensors.patches import normalise
from simmim.training.parallel import whole
from simmim.training.task import Task
from simmim.training.world import World


class WholeImageTask(Task):
    """Answer for whole images: the mean over the rows of a loss between outputs and targets.

    Args:
        classifier: What is trained.
        mixture: What is done to images and targets in training; None: nothing.
        ema: Decay of the average of the weights that is kept; 0: there is none.

    Attributes:
        classifier: What is measured and kept.
    """

    def __init__(
        self, classifier: Classifier, mixture: Mixture | None = None, ema: float = 0.0
    ) -> None:
        self._averaged = Averaged(classifier, ema) if ema else None
        super().__init__(self._averaged or classifier)
        self.classifier = self._averaged.average if self._averaged else classifier
        self._mixture = mixture

    @property
    def trained(self) -> Classifier:
        """What has gradients."""
        return self._averaged.trained if self._averaged else self.classifier

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See ``Task``; the batch has labels."""
        assert batch.labels is not None
        images, targets = self.inputs(batch), self.targets(batch.labels)
        if self._mixture is not None and self.module.training:
            images, targets = self._mixture(images, targets, batch.t)
        outputs = self.call(images).float()
        return {"loss": self.losses(outputs, targets).mean(), **self.measures(outputs, targets)}

    def targets(self, labels: Tensor) -> Tensor:
        """What the outputs should say, (B, outputs) float32."""
        raise NotImplementedError

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How far outputs (B, outputs) are from targets, such that the mean is optimised."""
        raise NotImplementedError

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """What else is told of a step."""
        return {}

    def inputs(self, batch: Batch) -> Tensor:
        """See ``Task``."""
        return normalise(batch.images, self.classifier.pixels)

    def roles(self) -> dict[str, tuple[Role, int]]:
        """Those of the encoder, and the head beside its final norm."""
        encoder = self.encoder
        roles = {f"encoder.{name}": role for name, role in encoder.roles().items()}
        top = encoder.depth + 1
        for name, role in usual_roles(self.trained.head, ()).items():
            roles[f"head.{name}"] = role, top
        return {f"trained.{k}": role for k, role in roles.items()} if self._averaged else roles

    def after_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        """See ``Task``: the average moves."""
        if self._averaged is not None:
            self._averaged.update(step)

    def deploy(self, run: Path, lineage: dict[str, object], world: World) -> None:
        """See ``Task``."""
        state = whole(self.classifier.timm_state(), world)
        world.write(lambda: save_classifier(run, self.classifier, lineage, state))


class ClassifyTask(WholeImageTask):
    """Tell classes apart, by cross-entropy.

    Args:
        classifier: What is trained.
        smoothing: Share of certainty spread over all classes.
        weights: How much each class counts (classes,); None: all alike.
        mixture: See ``WholeImageTask``.
        ema: See there.
    """

    def __init__(
        self,
        classifier: Classifier,
        smoothing: float,
        weights: Tensor | None = None,
        mixture: Mixture | None = None,
        ema: float = 0.0,
    ) -> None:
        super().__init__(classifier, mixture, ema)
        self.smoothing = smoothing
        self.weights = weights

    def targets(self, labels: Tensor) -> Tensor:
        """The probabilities of the classes."""
        classes = len(self.classifier.classes)
        return F.one_hot(labels, classes) * (1 - self.smoothing) + self.smoothing / classes

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy."""
        return F.cross_entropy(outputs, targets, weight=self.weights, reduction="none")

    def measures(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The share that was right; of a mixed image, the larger part counts."""
        return {"train_accuracy": (outputs.argmax(1) == targets.argmax(1)).float().mean()}


class TagTask(WholeImageTask):
    """Tell for each class whether an image is of it, by binary cross-entropy.

    Args:
        classifier: What is trained.
        weights: How much images of each class count (classes,); None: all alike.
        mixture: See ``WholeImageTask``.
        ema: See there.
    """

    def __init__(
        self,
        classifier: Classifier,
        weights: Tensor | None = None,
        mixture: Mixture | None = None,
        ema: float = 0.0,
    ) -> None:
        super().__init__(classifier, mixture, ema)
        self.weights = weights

    def targets(self, labels: Tensor) -> Tensor:
        """0 or 1."""
        return labels.float()

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the classes."""
        return F.binary_cross_entropy_with_logits(
            outputs, targets, pos_weight=self.weights, reduction="none"
        ).mean(1)


class RegressTask(WholeImageTask):
    """Tell a number, by squared error.

    Args:
        regressor: What is trained.
        mixture: See ``WholeImageTask``.
        ema: See there.
    """

    def __init__(
        self, regressor: Regressor, mixture: Mixture | None = None, ema: float = 0.0
    ) -> None:
        super().__init__(regressor, mixture, ema)
        self.mean = regressor.mean
        self.deviation = regressor.deviation

    def targets(self, labels: Tensor) -> Tensor:
        """In deviations from the mean."""
        return ((labels.double() - self.mean) / self.deviation).float()[:, None]

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The squared error, of a variance of 1."""
        return (outputs - targets).square()[:, 0]
