"""Whether a machine and what is installed on it are fit for training: rules on facts, alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["ok", "warn", "bad"]

GIB = 1 << 30
EXTRAS = {
    "hf": "weights of transformers, and exports to it",
    "onnx": "exports to ONNX",
    "remote": "images on s3:// and https://",
    "gcs": "images on gs://",
    "datasets": "data sets of Hugging Face",
    "ray": "clusters of machines",
    "tiff": "compressed TIFF of all kinds",
    "heic": "HEIC",
    "dicom": "DICOM",
}
"""What an extra gives."""

_ANEW = "pip install --upgrade --force-reinstall torch torchvision"
_DRIVER = "sudo ubuntu-drivers install    # or as this system installs NVIDIA's driver"
_BUSY = 1.5
"""Processes that want to run, per core, from which on a machine is busy."""


@dataclass(frozen=True, kw_only=True)
class Torch:
    """What torch says of itself, in a process of its own."""

    version: str
    cuda: str | None = None
    """The CUDA that it is built for; None: for CPUs."""
    gpus: Sequence[tuple[str, int]] = ()
    """Name and bytes of memory of each that it can use."""
    cuda_error: str = ""
    """Why it can use none, in its words."""
    numpy_error: str = ""
    """What is wrong where it exchanges arrays with numpy."""
    bf16: bool = False
    """Whether products in bfloat16 are taken for fast here."""
    bf16_gain: float | None = None
    """How many times as fast as float32 they were, measured."""


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Where runs are written."""

    place: str
    free: int = 0
    """Bytes."""
    write: float | None = None
    """Bytes/s, on the disk; None: not measured, for lack of room."""
    fsync: float | None = None
    """Seconds of a small file, on the disk."""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images were read."""

    source: str
    images: int = 0
    images_per_s: float = 0.0
    bytes_per_s: float = 0.0
    failed: int = 0
    tried: int = 0
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the machine."""

    cpu: str = "an unknown CPU"
    cores: int = 1
    """That this process may use."""
    quota: float | None = None
    """Cores' worth of time that the container grants; None: no limit."""
    load: float = 0.0
    """Processes that want to run, a mean over the last minute."""
    memory: int = 8 * GIB
    memory_free: int = 8 * GIB
    threads: Mapping[str, str] = field(default_factory=dict)
    """Those of OMP_NUM_THREADS and the like that are set."""
    installed: Mapping[str, str] = field(default_factory=dict)
    """Version by package, whose name is in lower case with dashes."""
    requires: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What packages require, as their metadata says, by package."""
    torch: Torch | str = "not asked"
    """Or why it cannot be imported."""
    torchvision: str = ""
    """What is wrong with its operators."""
    jpeg: str = ""
    """What is wrong where a JPEG is decoded."""
    nvidia: int = 0
    """GPUs of NVIDIA in the machine, whatever can use them."""
    driver: str | None = None
    """The version of NVIDIA's driver."""
    hidden: bool = False
    """Whether CUDA_VISIBLE_DEVICES leaves no GPU."""
    shm: int | None = None
    """Bytes of /dev/shm; None: it is not there."""
    disk: Disk | None = None
    reading: Reading | None = None


@dataclass(frozen=True)
class Finding:
    """What is to be said of one thing."""

    name: str
    verdict: Verdict
    said: str
    way: str = ""
    """The way out, or on, as a command."""


def findings(facts: Facts) -> list[Finding]:
    """All that is to be said."""
    return [finding for rule in RULES for finding in rule(facts)]


def cpu(facts: Facts) -> Iterator[Finding]:
    """The CPU, and whether others use it."""
    said = f"{facts.cpu}, {facts.cores} cores"
    if facts.load > _BUSY * facts.cores:
        said += f"; {facts.load:.1f} processes want to run at once, so all will be slow"
        yield Finding("CPU", "warn", said, "top")
    else:
        yield Finding("CPU", "ok", said)


def threads(facts: Facts) -> Iterator[Finding]:
    """More threads than cores, which slow each other down."""
    many = {
        name: text
        for name, text in facts.threads.items()
        if text.isdigit() and int(text) > facts.cores
    }
    if facts.quota is not None and facts.quota < facts.cores:
        few = max(1, int(facts.quota))
        yield Finding(
            "threads",
            "warn",
            f"this container may use {facts.quota:g} of the {facts.cores} cores that it sees, and "
            "simmim takes a thread for each",
            f"simmim pretrain DATA --threads {few} --workers {max(1, few // 2)}",
        )
    elif many:
        said = " and ".join(f"{name}={text}" for name, text in many.items())
        yield Finding(
            "threads", "warn", f"{said} on {facts.cores} cores: they wait for each other",
            f"unset {' '.join(many)}",
        )  # fmt: skip
    elif facts.threads.get("OMP_WAIT_POLICY", "").lower() == "active":
        said = "OMP_WAIT_POLICY=active: idle threads keep the cores from those that load images"
        yield Finding("threads", "warn", said, "unset OMP_WAIT_POLICY")
    else:
        yield Finding("threads", "ok", f"a run takes {facts.cores}, --threads another number")


def memory(facts: Facts) -> Iterator[Finding]:
    """Main memory."""
    said = f"{facts.memory / 1e9:.1f} GB, {facts.memory_free / 1e9:.1f} GB free"
    if facts.memory_free < 2 * GIB:
        yield Finding("memory", "warn", f"{said}: little for a model and its loaders",
                      "ps aux --sort -rss | head")  # fmt: skip
    else:
        yield Finding("memory", "ok", said)


def gpu(facts: Facts) -> Iterator[Finding]:
    """GPUs, and why none is used where there is one."""
    torch = facts.torch
    if isinstance(torch, str):
        return
    if torch.gpus:
        said = ", ".join(f"{name} ({size / GIB:.0f} GiB)" for name, size in torch.gpus)
        many = len(torch.gpus)
        way = f"torchrun --nproc-per-node={many} -m simmim pretrain DATA" if many > 1 else ""
        yield Finding("GPU", "ok", f"{said}, driver {facts.driver or 'unknown'}", way)
    elif not facts.nvidia:
        built = f"torch is built for CUDA {torch.cuda}" if torch.cuda else "torch is built for CPUs"
        yield Finding("GPU", "ok", f"none of NVIDIA found; runs go on the CPU ({built})")
    else:
        yield _unused(facts, torch)


def _unused(facts: Facts, torch: Torch) -> Finding:
    """Why a GPU that is there is not used."""
    there = f"{facts.nvidia} of NVIDIA, and runs go on the CPU"
    if torch.cuda is None:
        return Finding(
            "GPU", "bad", f"{there}: torch {torch.version} is built for CPUs",
            f"{_ANEW} --index-url https://pypi.org/simple",
        )  # fmt: skip
    if facts.driver is None:
        return Finding(
            "GPU", "bad",
            f"{there}: torch is built for CUDA {torch.cuda}, and there is no driver (in a "
            "container: it was started without --gpus all)",
            _DRIVER,
        )  # fmt: skip
    if facts.hidden:
        said = f"{there}: CUDA_VISIBLE_DEVICES leaves none"
        return Finding("GPU", "warn", said, "unset CUDA_VISIBLE_DEVICES")
    return Finding(
        "GPU", "bad",
        f"{there}: torch is built for CUDA {torch.cuda}, the driver is {facts.driver}"
        + (f" ({torch.cuda_error})" if torch.cuda_error else ""),
        _DRIVER,
    )  # fmt: skip


def versions(facts: Facts) -> Iterator[Finding]:
    """Whether installed packages are those that the others require."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    wrong = []
    for package, requirements in facts.requires.items():
        for text in requirements:
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
                continue
            version = facts.installed.get(canonicalize_name(needed.name))
            if version is None:
                wrong.append((f"{package} needs {needed.name}, which is missing", needed))
            elif not needed.specifier.contains(version, prereleases=True):
                wrong.append((f"{package} needs {text}, and {version} is installed", needed))
    for said, needed in wrong:
        way = f"pip install '{needed.name}{needed.specifier}'"
        yield Finding("versions", "bad", said, way)
    if not wrong:
        shown = ("simmim", "torch", "torchvision", "timm", "numpy")
        told = [f"{name} {facts.installed[name]}" for name in shown if name in facts.installed]
        yield Finding("versions", "ok", ", ".join(told) or "nothing is known of them")


def torch(facts: Facts) -> Iterator[Finding]:
    """Whether torch works, with torchvision and with numpy."""
    if isinstance(facts.torch, str):
        yield Finding("torch", "bad", f"cannot be imported: {facts.torch}", _ANEW)
        return
    ours, numpy = facts.torch.version, facts.installed.get("numpy", "of no known version")
    if facts.torchvision:
        theirs = facts.installed.get("torchvision", "")
        yield Finding(
            "torchvision", "bad",
            f"torchvision {theirs} does not fit torch {ours}: {facts.torchvision}", _ANEW,
        )  # fmt: skip
    else:
        yield Finding("torchvision", "ok", "its operators work with this torch")
    old = _number(ours) < (2, 3) and _number(numpy) >= (2, 0)
    if facts.torch.numpy_error or old:
        why = facts.torch.numpy_error or "it was built for numpy 1"
        said = f"torch {ours} cannot exchange arrays with numpy {numpy}: {why}"
        yield Finding("numpy", "bad", said, "pip install 'numpy<2'" if old else _ANEW)
    else:
        yield Finding("numpy", "ok", "exchanges arrays with torch")


def jpeg(facts: Facts) -> Iterator[Finding]:
    """Whether JPEG can be decoded."""
    if facts.jpeg:
        way = "pip install --upgrade --force-reinstall simplejpeg"
        yield Finding("JPEG", "bad", f"simplejpeg does not work: {facts.jpeg}", way)
    else:
        yield Finding("JPEG", "ok", "libjpeg-turbo decodes")


def extras(facts: Facts) -> Iterator[Finding]:
    """What could be added."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    missing = []
    needed = [Requirement(text) for text in facts.requires.get("simmim", ())]
    for extra, gives in EXTRAS.items():
        mine = [
            canonicalize_name(each.name)
            for each in needed
            if each.marker is not None
            and each.marker.evaluate({"extra": extra})
            and not each.marker.evaluate({"extra": ""})
        ]
        if any(name not in facts.installed for name in mine):
            missing.append((extra, gives))
    if missing:
        said = "; ".join(f"{extra}: {gives}" for extra, gives in missing)
        names = ",".join(extra for extra, _ in missing)
        yield Finding("extras", "ok", f"not installed: {said}", f"pip install 'simmim[{names}]'")
    else:
        yield Finding("extras", "ok", "all are installed")


def bfloat16(facts: Facts) -> Iterator[Finding]:
    """Whether products in bfloat16 are fast, and what --precision auto makes of it."""
    known = facts.torch
    if isinstance(known, str) or known.bf16_gain is None:
        return
    said = f"products in bfloat16 are {known.bf16_gain:.1f} times as fast as in float32"
    if known.bf16 and known.bf16_gain < 1:
        said += ", though this machine is said to have it, and --precision auto may take it"
        yield Finding("bfloat16", "warn", said, "simmim pretrain DATA --precision fp32")
    else:
        takes = "takes it where that helps" if known.bf16 else "does not take it"
        yield Finding("bfloat16", "ok", f"{said}; --precision auto {takes}")


def shared(facts: Facts) -> Iterator[Finding]:
    """/dev/shm: loaders do not need it, several GPUs of one machine do."""
    many = not isinstance(facts.torch, str) and len(facts.torch.gpus) > 1
    way = "docker run --shm-size=8g …"
    if facts.shm is None:
        said = "there is no /dev/shm, which processes need to wait for each other"
        yield Finding("/dev/shm", "warn", said, "mount -t tmpfs tmpfs /dev/shm")
    elif many and facts.shm < GIB:
        said = f"{facts.shm / 1e6:.0f} MB, and several GPUs exchange through it"
        yield Finding("/dev/shm", "warn", said, way)
    elif facts.shm < 1 << 20:
        yield Finding("/dev/shm", "warn", f"{facts.shm / 1e6:.1f} MB, which is too little", way)
    else:
        said = f"{facts.shm / 1e9:.2g} GB; images of loader processes do not pass through it"
        yield Finding("/dev/shm", "ok", said)


def disk(facts: Facts) -> Iterator[Finding]:
    """Where runs are written: room and speed."""
    found = facts.disk
    if found is None:
        return
    way = "simmim pretrain DATA --out ANOTHER_DISK/RUN"
    if found.error:
        said = f"nothing can be written to {found.place} ({found.error})"
        yield Finding("runs' disk", "bad", said, way)
        return
    said = f"{found.place}: {found.free / 1e9:.1f} GB free"
    if found.write is None or found.fsync is None:
        yield Finding("runs' disk", "bad", f"{said}, too little for a checkpoint", way)
        return
    said += f", writes {found.write / 1e6:,.0f} MB/s, {1e3 * found.fsync:.1f} ms to be on the disk"
    if found.free < 5e9:
        yield Finding("runs' disk", "warn", f"{said}; a run of a large model fills it", way)
    elif found.write < 30e6 or found.fsync > 0.5:
        yield Finding("runs' disk", "warn", f"{said}; each checkpoint takes long", way)
    else:
        yield Finding("runs' disk", "ok", said)


def data(facts: Facts) -> Iterator[Finding]:
    """How fast images are read."""
    found = facts.reading
    if found is None:
        return
    if found.error:
        yield Finding("images", "bad", found.error, "simmim scan DATA")
        return
    said = (
        f"{found.images:,} in {found.source}, read at {found.images_per_s:,.0f} images/s, "
        f"{found.bytes_per_s / 1e6:,.0f} MB/s"
    )
    if found.failed:
        said += f"; {found.failed:,} of {found.tried:,} could not be read"
        yield Finding("images", "warn", said, f"simmim scan {found.source}")
    elif found.images_per_s < 200:
        said += ": the model will wait for them"
        yield Finding("images", "warn", said, f"simmim shard {found.source} --out SHARDS")
    else:
        said += " (files that were read before come from memory)"
        yield Finding("images", "ok", said, f"simmim bench {found.source}")


def _number(version: str) -> tuple[int, int]:
    """Major and minor; 0 where it has none."""
    parts = [int(part) if part.isdigit() else 0 for part in version.split("+")[0].split(".")]
    major, minor, *_ = [*parts, 0, 0]
    return major, minor


RULES: Sequence[Callable[[Facts], Iterator[Finding]]] = (
    cpu, memory, gpu, versions, torch, jpeg, extras, threads, bfloat16, shared, disk, data,
)  # fmt: skip
