"""Memory and arithmetic of this machine."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

_MIN_BF16_WIDTH = 320  # narrower encoders gain nothing from bf16 on a CPU (docs/choices.md)
_MOST_BESIDE = 8
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
"""Files of a container's limit of memory, and of what of it is used."""
_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
"""Files of a container's time on all cores, and of the time that it is counted in."""


def available_memory(device: "torch.device | None" = None) -> int:
    """Bytes that a process can still take on ``device``; default: of main memory."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return min([_system_memory(), *(limit - used for limit, used in _limits())])


def total_memory() -> int:
    """Bytes of memory of this machine, or of the container that this runs in."""
    built_in = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([built_in, *(limit for limit, _ in _limits())])


def _limits() -> Iterator[tuple[int, int]]:
    """Yield the limit of each control group of memory, and how much of it is used."""
    for files in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            limit, used = (int(Path(file).read_text()) for file in files)
            yield limit, used


def _system_memory() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # Elsewhere the system tells only what is built in; half of it is taken as free.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Cores' worth of time that the container grants; None where nothing limits it."""
    for files in _QUOTAS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or no limit ("max")
            quota, period = map(int, " ".join(Path(file).read_text() for file in files).split())
            return quota / period if quota > 0 else None
    return None


def pick_workers(asked: int | None, processes: int = 1, *, alone: bool = False) -> int:
    """Worker processes beside each of so many processes.

    Args:
        asked: What the user gave; 0 works in the process itself.
        processes: Those that share the cores.
        alone: Whether the workers do all the work, and may take all cores; a model beside them
            leaves them half, and needs no more than eight.
    """
    if asked is not None:
        return asked
    return cores() if alone else max(1, min(_MOST_BESIDE, cores() // processes // 2))


def has_bfloat16(device: "torch.device") -> bool:
    """Whether products in bfloat16 are fast there."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def pick_precision(
    device: "torch.device", width: int
) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    """The fastest safe arithmetic for an encoder of ``width``, and why."""
    if device.type == "cuda":
        if has_bfloat16(device):
            return "bf16", "this GPU has bfloat16"
        return "fp16", "this GPU has no bfloat16; the loss is scaled"
    if device.type == "cpu":
        fast = has_bfloat16(device)
        if fast and width >= _MIN_BF16_WIDTH:
            return "bf16", f"this CPU has bfloat16 and the encoder is {width} wide"
        if fast:
            return "fp32", f"below a width of {_MIN_BF16_WIDTH}, bfloat16 gains nothing on a CPU"
        return "fp32", "this CPU has no bfloat16"
    return "fp32", "float32 on this device"
