"""What was found, drawn on its image."""

import numpy as np
from PIL import ImageColor

from simmim.data.sources.segmentation import encode_mask
from simmim.evaluate.precision import Found
from simmim.report import boxes
from simmim.report.boxes import OPACITY, overlay


def test_what_is_sure_is_drawn_with_its_mask_at_the_size_of_the_photo():
    mask = np.zeros((60, 80), bool)
    mask[20:50, 40:70] = True
    found = Found(
        (60, 80),
        np.array([[40.0, 20, 70, 50], [0, 0, 20, 20]]),
        np.array([1, 0]),
        np.array([0.9, 0.4], np.float32),
        [encode_mask(mask)] * 2,
    )
    shown = np.asarray(overlay(np.zeros((120, 160, 3), np.uint8), found, ["red", "blue"]))
    colour = np.array(ImageColor.getrgb(boxes._COLOURS[1]))
    assert shown.shape == (120, 160, 3)
    assert np.abs(shown[80, 120] - colour * (OPACITY / 255)).max() <= 1  # within
    assert np.array_equal(shown[80, 80], colour)  # its left edge
    assert not shown[:38].any()  # nor what is not sure
    assert not shown[:, :78].any()
