"""What a run has learned, never better than the figures; and how it is trained longer."""

import math

from simmim.report.words import percent
from simmim.runs.record import Record, column, mapping


def verdict_of(record: Record) -> tuple[str, str]:
    """Tone and words for what the model learned; never better than the figures."""
    explained, blur = record.last("explained"), record.last("explained_blur")
    if explained is None or record.lost("explained"):
        return _unmeasured(record)
    within = " (within the patch)" if within_patches(record) else ""
    if explained <= 0:
        return "caution", (
            f"It has not learned yet: on {measured_on(record)}, its predictions of the "
            f"hidden parts are no better than the mean colour of the visible ones (explained "
            f"detail{within} {percent(explained)}). Train longer first: {longer(record)[1]}. If it "
            "stays at or below 0 %, look at the reconstructions below and the curve of the loss: a "
            "loss that does not fall asks for another learning rate (optim.lr), one that jumps for "
            "a lower one."
        )
    said = (
        f"On {measured_on(record)}, it explains {percent(explained)} of the hidden "
        f"detail{within}: 0 % would be the mean colour of the visible parts, 100 % every pixel."
    )
    best = float(column(record.rows, "explained")[1].max())
    if explained < best - 0.05:
        said += f" It has been at {percent(best)} before and fell: look at the curves."
    if blur is None:
        return "good", said
    if blur <= 0:
        return "caution", (
            f"It has begun to learn. {said} It is not yet better than interpolation between the "
            f"visible patches ({percent(blur)}); train longer: {longer(record)[1]}."
        )
    return "good", f"{said} Of what interpolation leaves open it explains {percent(blur)}."


def _unmeasured(record: Record) -> tuple[str, str]:
    """Tone and words where the last look, or all of them, gave no explained detail."""
    if not record.rows:
        return "caution", (
            "No training step has been logged yet, so nothing can be said of learning."
        )
    if record.skipped >= record.step:
        return "caution", "Nothing was learned, since every step was skipped."
    if not record.lost("explained"):
        return "neutral", (
            "Explained detail was not measured, so this page cannot say how much was learned. It "
            "comes with the first look at the reconstructions, for targets of pixels."
        )
    return "caution", (
        "At the last look, explained detail could not be computed. Either the images that it is "
        "measured on are blank, or the training went off its course: look at the reconstructions "
        "and at the curve of the loss."
    )


def longer(record: Record) -> tuple[str, str]:
    """Flags that train twice as long in all, and what they do in words."""
    budget, resolved = record.config.get("budget"), record.resolved
    if budget:
        return f"--budget {budget}", f"as long again ({budget})"
    if not record.steps:
        return "--budget 1h", "for another hour"
    epochs = 2 * record.steps * (resolved.get("batch_size") or 0) / (resolved.get("images") or 1)
    return f"--epochs {math.ceil(epochs)}", f"twice as long ({math.ceil(epochs):,} epochs in all)"


def within_patches(record: Record) -> bool:
    """Whether patches were predicted without their means and contrasts."""
    target = mapping(record.config.get("target"))
    parts = target.get("parts")
    single = parts if isinstance(parts, list) else [target]
    return any(mapping(part).get("norm_pix") for part in single)


def measured_on(record: Record) -> str:
    """Which images progress was measured on; without any held out it is some trained on."""
    if record.resolved.get("holdout") == 0:
        return "some of its own training images (none were held out)"
    return "images that it never trained on"
