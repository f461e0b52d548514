"""The commands that look at images and prepare them: parse, check, call."""

from collections.abc import Sequence
from typing import TypeVar

from simmim.cli import checks
from simmim.cli.arguments import parse, split, wants_help
from simmim.cli.flags import flags_of
from simmim.config.data import BenchConfig, ScanConfig, ShardConfig

Config = TypeVar("Config")

SCAN = """Look at every image once: what they are, what is wrong, and what the model would see.
  simmim scan photos/
  simmim scan train/ --val test/        tells which test images are in train too
  simmim scan photos/ --sample 10000

It prints one screen and writes a page with pictures. Broken images are found, not an error."""

SHARD = """Resize images once and pack them into shards, which are read several times faster.
  simmim shard photos/ --out shards/
  simmim shard xrays/ --out shards/ --size 512 --dedupe near
  simmim shard photos/ --out shards/ --part 3/16        on the third of sixteen machines

The shards are tar files that WebDataset reads too; each is read back before it counts. What was
stopped goes on where it was when the same command is given again."""


BENCH = """Will reading the images starve the model? Times both on this machine, and says.
  simmim bench photos/
  simmim bench photos/ --model vit_base_patch16_224 --workers 8
  simmim bench s3://bucket/photos/ --out speed.json

It reads a sample of the images, keeps a temporary cache of it, and writes nothing else."""


def bench(words: Sequence[str]) -> None:
    """``simmim bench DATA``."""
    config = _read("bench", words, BenchConfig, BENCH)
    from simmim.api import run_bench

    run_bench(config)


def scan(words: Sequence[str]) -> None:
    """``simmim scan DATA``."""
    config = _read("scan", words, ScanConfig, SCAN)
    checks.check_file("--labels", config.labels)
    from simmim.api import run_scan

    run_scan(config)


def shard(words: Sequence[str]) -> None:
    """``simmim shard DATA --out SHARDS``."""
    config = _read("shard", words, ShardConfig, SHARD)
    checks.check_file("--labels", config.labels)
    from simmim.api import run_shard

    run_shard(config)


def _read(command: str, words: Sequence[str], config: type[Config], heading: str) -> Config:
    ask_help = wants_help(words)
    found = split(command, [] if ask_help else words, flags_of(config))
    return parse(command, found, config, heading=heading, ask_help=ask_help)
