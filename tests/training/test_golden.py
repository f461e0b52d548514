"""Thirty losses of a small run, as they were when the file was written.

    python -m pytest tests/training/test_golden.py --golden      writes them anew

On the same build of torch and kind of CPU they must be the same bits; elsewhere, equal to rounding.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from setting import Setting

from simmim.training.plan import Plan

GOLDEN = Path(__file__).with_name("golden.json")


def cpu() -> str:
    """Family and model, which decide which kernels run."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    told = dict(line.replace("\t", "").split(":", 1) for line in lines)
    return " ".join(told.get(name, "").strip() for name in ("vendor_id", "cpu family", "model"))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_thirty_losses_are_those_of_the_golden_file(setting: Setting, kind: str, request):
    encoder = replace(setting.config.encoder, drop_path=0.1)
    setting.config = replace(setting.config, encoder=encoder)
    optim = replace(setting.config.optim, kind=kind)
    plan = Plan(
        steps=30, batch_size=12, epoch=8, optim=optim, precision="fp32", seed=0, look_every=0
    )
    losses = [row["loss"] for row in setting.run(setting.task(), 30, plan=plan, micro=5)]
    here = {"torch": torch.__version__, "cpu": cpu()}
    known = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--golden"):
        known |= {kind: losses, "written on": here}
        GOLDEN.write_text(json.dumps(known, indent=1) + "\n")
    same = known["written on"] == here
    assert losses == (known[kind] if same else pytest.approx(known[kind], rel=0.02))
    assert sum(losses[20:]) < sum(losses[:10])
