import pytest

from simmim.api.settings import configure, recipe_named
from simmim.config.decoder import LinearDecoder
from simmim.config.mask import BlockMask
from simmim.config.target import CombinedTarget, HogTarget, PixelTarget
from simmim.errors import ConfigError


def test_a_part_is_changed_or_gets_another_kind():
    settings = {"mask": {"kind": "block", "least": 4}, "decoder": LinearDecoder(), "epochs": 3}
    config = configure("photos", recipe_named("mae"), {**settings, "target": {"loss": "l1"}})
    assert config.mask == BlockMask(ratio=0.75, rounding="keep-floor", least=4)
    assert config.decoder == LinearDecoder()
    assert config.target == PixelTarget(loss="l1", norm_pix=True)
    assert config.epochs == 3
    both = configure(
        "x", recipe_named("mae"), {"target": {"kind": "pixels,hog", "weights": (1, 3)}}
    )
    parts = (PixelTarget(norm_pix=True), HogTarget())
    assert both.target == CombinedTarget(parts=parts, weights=(1, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": {"kind": "blok"}}, "there is no such mask. Did you mean block?"),
        ({"mask": {"least": 4}}, "has no setting 'least'"),
        ({"maks": {}}, "Did you mean mask?"),
    ],
)
def test_what_is_not_known_is_answered_with_the_nearest(settings: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        configure("photos", recipe_named("simmim"), settings)
    assert message in str(caught.value)
