"""Memory and arithmetic of this machine."""

import os
from pathlib import Path
from typing import Literal

import torch

_MIN_BF16_WIDTH = 320  # narrower encoders gain nothing from bf16 on a CPU (docs/choices.md)


def available_memory(device: torch.device) -> int:
    """Bytes that a process can still take on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = _system_memory()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue
    return free


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


def pick_precision(device: torch.device, width: int) -> tuple[Literal["fp32", "bf16", "fp16"], str]:
    """The fastest safe arithmetic for an encoder of ``width``, and why."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU has bfloat16"
        return "fp16", "this GPU has no bfloat16; the loss is scaled"
    if device.type == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        if fast and width >= _MIN_BF16_WIDTH:
            return "bf16", f"this CPU has bfloat16 and the encoder is {width} wide"
        if fast:
            return "fp32", f"below a width of {_MIN_BF16_WIDTH}, bfloat16 gains nothing on a CPU"
        return "fp32", "this CPU has no bfloat16"
    return "fp32", "float32 on this device"
