"""What only a GPU can tell: do runs resume to the same bits there, and how fast do they train?

    make gpu [ARGS="--only speed,loader --minutes 8 --out benchmarks/results/gpu.json"]
    make gpu PYTHON=python3 WHEELS=folder     on a machine without network and without .venv

- machine: GPU, driver, versions
- verify: `simmim verify`
- resume: short runs of each recipe, killed after a checkpoint and resumed, with runs that were not
- repeat: the gradients of one batch, computed three times, at the recipes' own sizes
- waits: places in a step that wait for the GPU
- float32: the losses of a dozen steps, with the CPU's
- memory: what the rule for the micro-batch expects, and the peak
- speed: whole steps in bf16 beside a plain loop of the MAE design, compiled and not; the share of
  the peak is the model's FLOPs (forward times three) over what a product of matrices reaches
- loader: images/s from shards by number of workers, and training fed by them

The steps are made in order of importance, each within a limit of seconds, and every figure is in
the JSON file as soon as it is there; a step that fails leaves its traceback, and the next one runs.
Without a GPU the same steps run on the CPU at a tiny size, which says that the script works and
nothing else.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDS = ["torch", "timm", "torchvision", "numpy", "safetensors", "pydantic", "yaml", "rich"]
NEEDS += ["simplejpeg", "PIL", "tifffile", "matplotlib", "jinja2", "tensorboard", "pyarrow"]
NEEDS += ["sklearn"]
PACKAGES = {"yaml": "PyYAML", "PIL": "pillow", "sklearn": "scikit-learn"}
"""Where a package is named otherwise than its module."""
LIMITS = {
    "machine": 20.0,
    "verify": 100.0,
    "resume": 130.0,
    "repeat": 50.0,
    "waits": 60.0,
    "float32": 40.0,
    "memory": 40.0,
    "speed": 220.0,
    "loader": 60.0,
}
"""Seconds that each step may take; the loader's are kept free while others run."""


class OutOfTime(BaseException):
    """A step reached its limit; nothing that handles errors may swallow it."""


def check_imports() -> None:
    """Say which versions there are, or end with what is missing."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"gpu.py: {sys.executable} lacks {', '.join(missing)}; see make help for WHEELS.")
    names = [PACKAGES.get(name, name) for name in NEEDS]
    print(", ".join(f"{name} {importlib.metadata.version(name)}" for name in names), flush=True)


def prepare(folder: Path) -> None:
    """Let this process and its children find this checkout, uninstalled, and leave no caches."""
    os.environ["SIMMIM_CACHE"] = os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    # What CUDA's matrix products need to be deterministic; on Hopper it is the default size.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    paths = [str(REPOSITORY)]
    try:
        importlib.metadata.version("simmim")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        facts = folder / f"simmim-{project['version']}.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: simmim\nVersion: {project['version']}\n"
        )
        paths.append(str(folder))
    sys.path[:0] = paths
    given = [os.environ[name] for name in ["PYTHONPATH"] if os.environ.get(name)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *given])


Step = Callable[[Any, Any], None]
"""Takes a ``Part`` and a ``Setting``, which need simmim, and so are imported late."""


def load_steps(folder: Path) -> tuple[dict[str, Step], Any, Any]:
    """The steps by name, the setting, and what makes parts."""
    import gpu_runs
    import gpu_speed
    from gpu_setting import Part, setting_in

    modules = (gpu_runs, gpu_speed)
    steps = {name: getattr(m, name) for m in modules for name in LIMITS if hasattr(m, name)}
    return steps, setting_in(folder), Part


def run_step(step: Step, part: Any, setting: Any) -> None:
    """Make a step; what goes wrong is kept, and the next one can run."""
    began, facts = time.monotonic(), part.facts
    print(f"\n{part.name}", flush=True)
    if part.left() <= 0:
        facts["error"] = "left out: the time was up"
        part.close()
        return
    signal.setitimer(signal.ITIMER_REAL, part.left())
    try:
        step(part, setting)
    except OutOfTime:
        facts["error"] = f"stopped at its limit, after {time.monotonic() - began:.0f} s"
    except Exception:  # the other steps can still tell something
        facts["error"] = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        facts["seconds"] = round(time.monotonic() - began, 1)
        part.close()
    if "error" in facts:
        print(f"  FAILED: {last_line(facts['error'])}", flush=True)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def table(found: dict[str, Any]) -> str:
    lines = []
    for name, facts in found.items():
        lines.append(f"{name} ({facts.get('seconds', 0):.0f} s)")
        for what, figure in facts.get("figures", {}).items():
            lines.append(f"  {what:58} {figure['shown']}")
        if facts.get("error"):
            lines.append(f"  FAILED: {last_line(facts['error'])}")
    return "\n".join(lines)


def out_of_time(*_: object) -> None:
    raise OutOfTime


def main() -> int:
    parser = argparse.ArgumentParser(description="What only a GPU can tell.")
    parser.add_argument("--only", default=",".join(LIMITS), help="steps, with commas between")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/gpu.json")
    options = parser.parse_args()
    chosen = options.only.split(",")
    if unknown := set(chosen) - LIMITS.keys():
        parser.error(f"no step {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}")
    end = time.monotonic() + options.minutes * 60
    check_imports()
    signal.signal(signal.SIGALRM, out_of_time)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    found: dict[str, Any] = {}

    def save() -> None:
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1, default=str) + "\n")
        temporary.replace(options.out)

    try:
        with tempfile.TemporaryDirectory(prefix="simmim-gpu-") as folder:
            prepare(Path(folder))
            steps, setting, make_part = load_steps(Path(folder))
            for name in chosen:
                kept = LIMITS["loader"] if "loader" in chosen and name != "loader" else 0
                until = min(time.monotonic() + LIMITS[name], end - kept)
                facts = found.setdefault(name, {})
                run_step(steps[name], make_part(name, facts, Path(folder), save, until), setting)
                setting.free()
    except KeyboardInterrupt:
        print("\nstopped", flush=True)
    finally:
        print(f"\n{table(found)}\n\n{options.out}", flush=True)
    return int(any("error" in facts for facts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
