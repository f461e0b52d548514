"""Boxes and masks drawn on their image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from simmim.data.sources.segmentation import decode_mask
from simmim.evaluate.precision import Found
from simmim.report.pictures import Photo, to_image

SURE = 0.5
"""Least score of a box that is drawn."""
_WIDE, _GAP = 480, 8
"""Pixels of a picture on a sheet, and between two of them."""
OPACITY = np.uint8(110)
"""Of masks; 255: nothing shines through."""
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def overlay(photo: Photo, found: Found, classes: Sequence[str]) -> Image.Image:
    """An image with what was found in it, as far as that is sure: class and score of each, mask.

    The surest lie on top.
    """
    image = to_image(photo)
    sure = np.flatnonzero(found.scores >= SURE)[::-1]
    if found.masks is not None:
        for row in sure:
            covered = Image.fromarray(decode_mask(found.masks[row], found.frame) * OPACITY)
            colour = _COLOURS[int(found.labels[row]) % len(_COLOURS)]
            image.paste(colour, (0, 0), covered.resize(image.size))
    draw = ImageDraw.Draw(image)
    scale = np.array([image.width / found.frame[1], image.height / found.frame[0]] * 2)
    width = max(1, round(max(image.size) / 300))
    for row in sure:
        label, score = int(found.labels[row]), found.scores[row]
        left, top, right, bottom = (found.corners[row] * scale).tolist()
        colour = _COLOURS[label % len(_COLOURS)]
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), None, colour, width)
        text = f"{classes[label]} {score:.0%}"
        around = draw.textbbox((left + width, top + width), text)
        draw.rectangle(around, colour)
        draw.text((left + width, top + width), text, "white")
    return image


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures two abreast, each as wide as the others."""
    high = [round(each.height * _WIDE / each.width) for each in pictures]
    rows = [max(high[k : k + 2]) for k in range(0, len(high), 2)]
    paper = Image.new("RGB", (2 * _WIDE + _GAP, sum(rows) + _GAP * (len(rows) - 1)), "white")
    for k, (picture, height) in enumerate(zip(pictures, high, strict=True)):
        top = sum(rows[: k // 2]) + _GAP * (k // 2)
        paper.paste(picture.resize((_WIDE, height)), ((k % 2) * (_WIDE + _GAP), top))
    return paper
