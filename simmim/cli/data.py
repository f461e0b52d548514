"""The commands that look at images and prepare them: parse, check, call."""

from collections.abc import Sequence

from simmim.cli import checks
from simmim.cli.arguments import read_command
from simmim.config.data import BenchConfig, ScanConfig, ShardConfig

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
  simmim bench runs/20261123-0712-simmim-vit_small_patch16_224     what the encoder costs
  simmim bench photos/ --model vit_base_patch16_224 --workers 8
  simmim bench s3://bucket/photos/ --out speed.json

It reads a sample of the images, keeps a temporary cache of it, and writes nothing else. Given a run
instead, it times the encoder by batch size and precision, with its memory, and the decoder."""


def bench(words: Sequence[str]) -> None:
    """``simmim bench DATA``."""
    config = read_command("bench", words, BenchConfig, BENCH)
    from simmim.api.bench import run_bench

    run_bench(config)


def scan(words: Sequence[str]) -> None:
    """``simmim scan DATA``."""
    config = read_command("scan", words, ScanConfig, SCAN)
    checks.check_file("--labels", config.labels)
    from simmim.api.scan import run_scan

    run_scan(config)


def shard(words: Sequence[str]) -> None:
    """``simmim shard DATA --out SHARDS``."""
    config = read_command("shard", words, ShardConfig, SHARD)
    checks.check_file("--labels", config.labels)
    from simmim.api.shard import run_shard

    run_shard(config)
