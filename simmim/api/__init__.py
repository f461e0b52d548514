"""One function per command, from its config to its results; the command line only parses.

Nothing heavy is imported until a function is called.
"""

import os
import sys
from pathlib import Path
from typing import Any

from simmim.config.commands import (
    DemoConfig,
    EmbedConfig,
    ExportConfig,
    FinetuneConfig,
    ProbeConfig,
    ReconstructConfig,
    ReportConfig,
    VerifyConfig,
)
from simmim.config.data import BenchConfig, ScanConfig, ShardConfig
from simmim.config.run import PretrainConfig


def _share_cores() -> None:
    """Let idle threads sleep instead of spinning, before torch is imported.

    Loader and training share the cores: with spinning threads one busy process beside two training
    threads on two cores made a step five times as long.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_pretrain(config: PretrainConfig) -> Path:
    """Pretrain; returns the run folder."""
    _share_cores()
    from simmim.api.pretrain import run_pretrain

    return run_pretrain(config)


def run_resume(run: Path, changes: dict[str, object]) -> Path:
    """Go on with a run that was stopped; returns its folder."""
    _share_cores()
    from simmim.api.pretrain import run_resume

    return run_resume(run, changes)


def run_finetune(config: FinetuneConfig) -> Path:
    """Fine-tune on labelled images; returns the folder of the results."""
    _share_cores()
    from simmim.api.use import run_finetune

    return run_finetune(config)


def run_probe(config: ProbeConfig) -> None:
    """Measure and print what frozen features are worth."""
    _share_cores()
    from simmim.api.use import run_probe

    run_probe(config)


def run_embed(config: EmbedConfig) -> Path:
    """Write the features of images to a file; returns it."""
    _share_cores()
    from simmim.api.use import run_embed

    return run_embed(config)


def run_reconstruct(config: ReconstructConfig) -> Path:
    """Write a picture of originals, masked images and reconstructions; returns it."""
    _share_cores()
    from simmim.api.use import run_reconstruct

    return run_reconstruct(config)


def run_export(config: ExportConfig) -> Path:
    """Write an encoder for another library, load it there, compare; returns the folder."""
    _share_cores()
    from simmim.api.export import run_export

    return run_export(config)


def run_report(config: ReportConfig) -> Path:
    """Write a run's report anew; returns it."""
    _share_cores()
    from simmim.api.use import run_report

    return run_report(config)


def run_verify(config: VerifyConfig) -> Path:
    """Check this installation; returns the certificate, and raises where a check failed."""
    _share_cores()
    from simmim.api.verify import run_verify

    return run_verify(config)


def run_demo(config: DemoConfig) -> Path:
    """The whole story on embedded photos; returns the folder of the results."""
    _share_cores()
    from simmim.api.demo import run_demo

    return run_demo(config)


def run_scan(config: ScanConfig) -> Path:
    """Look at images and write a page about them; returns it."""
    _share_cores()
    from simmim.api.scan import run_scan

    return run_scan(config)


def run_shard(config: ShardConfig) -> Path:
    """Pack images into shards; returns their folder."""
    _share_cores()
    from simmim.api.shard import run_shard

    return run_shard(config)


def run_bench(config: BenchConfig) -> dict[str, Any]:
    """Time the loader beside the model; returns the figures."""
    _share_cores()
    from simmim.api.bench import run_bench

    return run_bench(config)
