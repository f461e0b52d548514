"""Frozen features, pretrained and random, at growing numbers of labels."""

from threadpoolctl import threadpool_limits

from simmim.config.demo import CURVE
from simmim.evaluate import probe
from simmim.evaluate.features import extract
from simmim.evaluate.fewshot import few_shots
from simmim.interop.scratch import scratch_encoder
from simmim.report.sections import Draw, Score
from simmim.studies.label_efficiency import METHODS, Evaluation


def frozen_curve(evaluation: Evaluation, draws: int) -> list[Draw]:
    """Logistic regression from ``CURVE`` labels of a class, of nested draws, on both features.

    The random encoder is one for all draws.
    """
    pretrained, photos, seed = evaluation.pretrained, evaluation.photos, evaluation.seed
    random = scratch_encoder(evaluation.config, pretrained, 0, seed)
    classes = len(photos.classes)
    shots = []
    for encoder in (pretrained, random.to(evaluation.world.device)):
        known, asked = extract(encoder, photos.train), extract(encoder, photos.test)
        assert known.labels is not None
        assert asked.labels is not None
        pieces = (known.features, known.labels, asked.features, asked.labels)
        with threadpool_limits(1, "blas"):
            found = few_shots(*pieces, classes=classes, shots=CURVE, draws=draws, seed=seed)
            shots.append(list(found))
    return [
        Draw(
            labels=one.each * classes,
            pretrained=_figures(one.score),
            baseline=_figures(other.score),
            protocol=METHODS["linear"],
        )
        for one, other in zip(*shots, strict=True)
    ]


def _figures(score: probe.Score) -> Score:
    return Score(accuracy=score.accuracy, balanced=score.balanced_accuracy)
