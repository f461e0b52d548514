import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from simmim.api.bench import CACHE, DECODING, LOADER, READING, Figures, _named, run_bench, verdict
from simmim.api.bench_encoder import Alive, names_encoder
from simmim.config.data import BenchConfig
from simmim.errors import ConfigError

REFERENCE = Path(__file__).parents[1] / "interop" / "reference"


def figures(loader: float, model: float, *, workers: int = 2, cores: int = 8) -> Figures:
    rates = {_named(LOADER, 0): loader / 2, _named(LOADER, 2): loader, _named(CACHE, 2): 900.0}
    return Figures(1000, workers, cores, rates, model, "cuda", 264_000_000, "crops lose detail")


@pytest.mark.parametrize(
    ("loader", "model", "words"),
    [
        (220, 100, ["will not starve", "2.2 times"]),
        (105, 100, ["only just as fast", "--workers 3 should do", "--cache on gives 900"]),
        (100, 200, ["wait 50 % of the time", "--workers 5 should do", "264 MB", "simmim shard"]),
        (100, 900, ["wait 89 %", "20 would be needed, and there are 8 cores"]),
        (1000, 5000, ["wait 80 %"]),
    ],
)
def test_the_verdict_follows_from_the_rates(loader: float, model: float, words: list[str]):
    text = "\n".join(verdict(figures(loader, model)))
    assert [word for word in words if word not in text] == []
    assert ("--cache on" in text) == (loader < model * 1.1 and loader < 900)


def test_where_the_cache_is_kept_by_default_the_later_epochs_are_judged():
    text = "\n".join(verdict(replace(figures(100, 200), keeps=True)))
    assert "will not starve the model after the first epoch, 50 % of which it waits" in text
    assert "4.5 times" in text
    assert "starves" in "\n".join(verdict(replace(figures(100, 900), keeps=True)))


@pytest.mark.parametrize("kind", ["jpg", "deep"])
def test_all_ways_of_loading_are_timed(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(0)
    for i in range(6):
        if kind == "jpg":
            image = Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
            image.save(tmp_path / f"{i}.jpg")
        else:
            image = Image.fromarray(rng.integers(0, 65536, (60, 80), dtype=np.uint16))
            image.save(tmp_path / f"{i}.png")
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "speed.json"
    config = BenchConfig(
        data=(str(tmp_path),),
        model="vit_tiny_patch16_224",
        image_size=32,
        workers=1,
        seconds=0.05,
        out=out,
    )
    found = run_bench(config)
    names = {READING, DECODING, _named(LOADER, 0), _named(LOADER, 1)}
    assert names <= set(found["rates"])
    assert any(name.startswith(CACHE) for name in found["rates"]) == (kind == "jpg")
    assert all(rate > 0 for rate in found["rates"].values())
    assert found["rates"][READING] > found["rates"][DECODING]
    assert found["model"] > 0
    assert json.loads(out.read_text())["rates"] == found["rates"]
    printed = capsys.readouterr().out
    assert "images/s" in printed
    assert "verdict" in printed
    left = {path.suffix for path in tmp_path.iterdir()}
    assert left <= {".jpg", ".png", ".json"}


def test_a_folder_for_the_figures_that_is_not_there_is_told_first(tmp_path: Path):
    out = tmp_path / "none" / "speed.json"
    with pytest.raises(ConfigError, match="there is no folder"):
        run_bench(BenchConfig(data=(str(tmp_path),), out=out))
    with pytest.raises(ConfigError, match="json"):
        BenchConfig(data=("x",), out=Path("speed.txt"))
    with pytest.raises(ConfigError, match="DATA"):
        BenchConfig(data=())


def test_an_encoder_is_timed_with_its_memory_and_beside_it_the_decoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("simmim.api.bench_encoder.BATCHES", (1, 4))
    mae, out = str(REFERENCE / "mae.pth"), tmp_path / "cost.json"
    found = run_bench(BenchConfig(data=(mae,), seconds=0.01, out=out))
    first, second = found["encoder"][:2]
    assert [first["batch"], second["batch"]] == [1, 4]
    assert first["images_per_s"] == pytest.approx(1 / first["seconds"])
    images = 3 * 4 * math.prod(found["image_size"])
    assert first["memory"] > found["weights"] + images
    # What is alive grows with the batch, the weights do not.
    alive = first["memory"] - found["weights"]
    assert 2 * alive < second["memory"] - found["weights"] < 4.5 * alive
    assert found["decoder"]["weights"] > 0
    assert found["decoder"]["masked"] == 0.75
    assert json.loads(out.read_text()) == found
    text = " ".join(capsys.readouterr().out.split())
    assert "decoder not deployed; it would take" in text
    assert "75 % masked" in text
    capsys.readouterr()
    config = BenchConfig(data=(mae,), seconds=0.01, image_size=found["image_size"][0] * 2)
    assert run_bench(config)["image_size"] == [2 * side for side in found["image_size"]]
    assert run_bench(replace(config, data=(str(REFERENCE / "simmim_vit.pth"),)))["decoder"]
    with pytest.raises(ConfigError, match="other flags are for images"):
        run_bench(replace(config, workers=2))
    assert not names_encoder([str(tmp_path)])
    assert not names_encoder([mae, mae])
    assert names_encoder(["timm:vit_tiny_patch16_224"])


def test_tensors_that_are_alive_at_once_are_counted():
    weights, x = nn.Linear(1000, 1000, bias=False), torch.ones(1000)
    with Alive(weights) as alive:
        y = x + 1
        y = y * 2  # both, for a moment
        y = weights.weight.T[0].view(10, 100) + y.view(10, 100)
        del y
        torch.add(x, 1)
    assert alive.most == 2 * 4000
