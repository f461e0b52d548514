"""A pretraining run of moments, for the commands that use one."""

from pathlib import Path

import pytest

from simmim.cli.main import main

TINY = [
    *("--model", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "16"),
    *("--arguments", "depth=1,embed_dim=24,num_heads=2", "--decoder.depth", "1"),
    *("--decoder.width", "16", "--decoder.heads", "2", "--batch-size", "8"),
    *("--workers", "0", "--threads", "1", "--tensorboard", "false", "--picture-every", "0"),
]


@pytest.fixture(scope="session")
def tiny_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the hundred photos."""
    out = tmp_path_factory.mktemp("tiny") / "run"
    assert main(["pretrain", str(photos), *TINY, "--epochs", "0.5", "--out", str(out)]) == 0
    return out
