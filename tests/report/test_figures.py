import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from simmim.report import figures

ROWS = [
    {"step": step, "loss": 1 / step, "lr": 1e-3, "images_per_s": 200.0}
    | ({"explained": 0.5 - 1 / step, "explained_blur": 0.2 - 2 / step} if step % 50 == 1 else {})
    for step in range(1, 2001)
]


@pytest.mark.parametrize(
    "draw",
    [
        figures.loss_curve,
        figures.explained_curve,
        figures.rate_curve,
        figures.speed_curve,
    ],
)
@pytest.mark.parametrize("rows", [ROWS, [{"step": 1, "loss": None, "lr": "x", "explained": 0.1}]])
def test_curves_are_small_svg_elements_for_light_and_dark_pages(draw, rows):
    svg = draw(rows)
    ET.fromstring(svg)
    assert svg.startswith("<svg viewBox=")
    assert 'role="img" aria-label="' in svg
    assert "var(--figure-ink, #808080)" in svg
    assert "#ffffff" not in svg
    assert len(svg) < 60_000
    assert "metadata" not in svg


def test_absurd_values_do_not_press_a_curve_flat_or_leave_the_page():
    rows = [{"step": n, "loss": 1 / n, "explained": n / 100} for n in range(1, 60)]
    ruined = [*rows, {"step": 60, "loss": 2.4e22, "explained": -2e21}]
    assert ">1e" in figures.loss_curve(ruined)  # a logarithmic scale
    assert ">1e" not in figures.loss_curve(rows)
    for draw in (figures.loss_curve, figures.explained_curve):
        places = re.findall(r'<path d="([^"]+)"', draw(ruined))
        numbers = [float(n) for path in places for n in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?", path)]
        assert max(map(abs, numbers)) < 1e4


def test_ids_of_two_figures_in_a_page_never_meet():
    both = figures.loss_curve(ROWS) + figures.speed_curve(ROWS)
    ids = re.findall(r' id="([^"]+)"', both)
    assert len(ids) == len(set(ids)) > 0
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', both)) != set()
    for one, other in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', both):
        assert (one or other) in ids


def test_a_figure_is_the_same_each_time():
    assert figures.loss_curve(ROWS) == figures.loss_curve(ROWS)


def test_accuracy_over_labels_takes_one_draw_without_an_error():
    line = figures.Series(name="a & b", labels=[10, 100], mean=[0.1, 0.2], error=[np.nan, 0.01])
    svg = figures.label_curve([line, line])
    ET.fromstring(svg)
    assert "a &amp; b" in svg
    assert "nan" not in svg.lower()


def test_a_confusion_matrix_takes_any_names_and_empty_rows():
    counts = np.array([[3, 1], [0, 0]])
    svg = figures.confusion_matrix(counts, ["$x_1$ <b>", "帽子" * 20])
    ET.fromstring(svg)
    assert "$x_1$ &lt;b&gt;" in svg
    assert ">3</text>" in svg
    assert ">0</text>" not in svg


def test_a_map_names_each_class_once_and_keeps_names_apart():
    points = np.zeros((6, 2))
    svg = figures.embedding_map(points, [0, 0, 1, 1, 2, 2], ["a", "<b>", "c", "unused"])
    tree = ET.fromstring(svg)
    texts = [node for node in tree.iter() if node.tag.endswith("text")]
    assert [node.text for node in texts] == ["a", "<b>", "c"]
    heights = sorted(float(node.get("y", "")) for node in texts)
    assert min(np.diff(heights)) >= 17
    assert svg.count("<circle") == 6
