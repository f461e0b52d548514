"""How large is the list of ten million images, and how fast is it made and opened?

`python benchmarks/index.py [--images 10000000]` writes `benchmarks/results/index.json`. The images
are names alone, of the shape `0123/0123456789-photo.jpg` in folders of a thousand, as a folder
source gives them, and as shards give them (with file, place, size and label). Everything but the
making is measured in a new process, whose private memory is what Linux calls Private_Clean plus
Private_Dirty of all its mappings that are no file; pages of the index itself belong to the file.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from simmim.data.sources.index import build
from simmim.data.sources.source import Entry, SourceInfo

OPEN = """
import json, sys, time
from pathlib import Path

def private():
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(r.split()[1]) for r in rows if r.startswith(("Private_Clean", "Private_Dirty")))

from simmim.data.sources.find import split_holdout
from simmim.data.sources.index import Index
from simmim.data.sources.listing import Listing
from simmim.data.loading.order import Order
before = private()
began = time.perf_counter()
images = Listing([Index(Path(sys.argv[1]))])
opened = time.perf_counter() - began
began = time.perf_counter()
train, held = split_holdout(images, 64)
split = time.perf_counter() - began
order = Order((len(train),), 0)
began = time.perf_counter()
names = [train[order.index(t)] for t in range(20_000)]
each = (time.perf_counter() - began) / len(names)
after = private()
anonymous = sum(
    int(r.split()[1])
    for r in Path("/proc/self/smaps_rollup").read_text().splitlines()
    if r.startswith("Anonymous:")
)
print(json.dumps({
    "open_seconds": opened, "holdout_seconds": split, "microseconds_per_name": 1e6 * each,
    "private_MB_before": before / 1e3, "private_MB": after / 1e3, "anonymous_MB": anonymous / 1e3,
}))
"""


class Names:
    """A source of names that follow from their numbers."""

    def __init__(self, images: int, *, placed: bool) -> None:
        self.images = images
        self.placed = placed

    def state(self) -> None:
        return None

    def info(self) -> SourceInfo:
        return SourceInfo("folder", "/synthetic", ["/synthetic"])

    def entries(self):
        for i in range(self.images):
            name = f"{i // 1000:04}/{i:010}-photo.jpg"
            if self.placed:
                yield Entry(name, i // 10_000, i % 10_000 * 120_000, 110_000, f"{i % 1000}")
            else:
                yield Entry(name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/index.json"))
    arguments = parser.parse_args()
    results = {"images": arguments.images}
    for kind, placed in (("folder", False), ("shards", True)):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "index.arrow"
            began = time.perf_counter()
            build(Names(arguments.images, placed=placed), file)
            made = time.perf_counter() - began
            done = subprocess.run(
                [sys.executable, "-c", OPEN, str(file)], capture_output=True, text=True, check=True
            )
            facts = json.loads(done.stdout)
            results[kind] = {
                "make_seconds": made,
                "disk_GB": file.stat().st_size / 1e9,
                **facts,
            }
        print(kind, results[kind], flush=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
