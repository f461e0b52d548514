"""What is tried in a process of its own, since it may fail, hang, or end the process."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

_SIDE = 768
"""Of the matrices whose product is timed: the width of a ViT-B."""


def try_torch() -> dict[str, Any]:
    """Fields of ``simmim.verify.installation.Torch``."""
    import torch

    from simmim.machine import has_bfloat16

    cuda_error = numpy_error = ""
    if not torch.cuda.is_available() and torch.version.cuda is not None:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            cuda_error = str(error).partition(". ")[0].strip()
    try:
        torch.from_numpy(torch.zeros(2).numpy())
    except (RuntimeError, ImportError) as error:
        numpy_error = str(error)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [(gpu.name, gpu.total_memory) for gpu in gpus],
        "cuda_error": cuda_error,
        "numpy_error": numpy_error,
        "bf16": has_bfloat16(device),
        "bf16_gain": _seconds(torch.float32, device) / _seconds(torch.bfloat16, device),
    }


def try_torchvision() -> None:
    """Operators of torchvision, which are compiled for one version of torch."""
    import torch
    from torchvision.ops import nms

    kept = nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    assert kept.tolist() == [0]


def try_jpeg() -> None:
    """A picture through libjpeg-turbo and back."""
    import numpy as np
    import simplejpeg

    picture = np.full((16, 16, 3), 90, np.uint8)
    back = simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(picture, quality=95))
    assert abs(back.astype(int) - picture).max() < 4, "a grey picture came back as another"


def _seconds(dtype: Any, device: Any) -> float:
    """Least of some products of matrices."""
    import torch

    a = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    times = []
    for _ in range(6):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        times.append(time.perf_counter() - began)
    return min(times)


TRIALS: dict[str, Callable[[], dict[str, Any] | None]] = {
    "jpeg": try_jpeg,
    "torch": try_torch,
    "torchvision": try_torchvision,
}


def main() -> None:
    """``python -m simmim.verify.probes NAMES``: for each a line of JSON, facts or an error."""
    for name in sys.argv[1:]:
        try:
            answer = {"facts": TRIALS[name]()}
        except Exception as error:  # whatever a broken package raises
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]}
        sys.stdout.write(f"\n{json.dumps({'name': name, **answer})}\n")
        sys.stdout.flush()  # the next one may end the process


if __name__ == "__main__":
    main()
