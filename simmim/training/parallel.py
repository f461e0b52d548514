"""One module in several processes: wrapped, and its tensors brought together again.

Where a module is sharded, each process holds a part of every tensor. What is computed then begins
with a call of the module, and what is read of its tensors goes through ``full`` or ``whole``, in
all processes and in the same order.
"""

import warnings
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simmim.training.world import World


def wrap(module: nn.Module, world: World) -> nn.Module:
    """``module``, such that its gradients are averaged over the processes.

    One that is sharded does so by itself.
    """
    if world.ranks == 1:
        return module
    from torch.distributed.fsdp import FSDPModule  # slow to import

    if isinstance(module, FSDPModule):
        return module
    devices = [world.device.index] if world.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer versions have another name for it, which the older ones do not know.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)


def full(value: Tensor, world: World) -> Tensor:
    """A tensor of which each process may hold a part, as a whole."""
    if world.ranks > 1:
        from torch.distributed.tensor import DTensor  # slow to import

        if isinstance(value, DTensor):
            return value.full_tensor()
    return value


def part(value: Tensor, like: Tensor, world: World) -> Tensor:
    """A whole tensor, the same in all processes, held as they hold ``like``."""
    if world.ranks > 1:
        from torch.distributed.tensor import DTensor, distribute_tensor  # slow to import

        if isinstance(like, DTensor):
            return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value


def whole(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The full tensors on the CPU, in the first process; the others get none."""
    out = {}
    for name, value in tensors.items():
        each = full(value.detach(), world)
        if world.leads:
            out[name] = each.cpu().contiguous()
    return out
