"""One optimizer step."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from simmim.tensors.batch import Batch
from simmim.tensors.counter import torch_seed
from simmim.training.muon import Muon
from simmim.training.parallel import full
from simmim.training.task import Task
from simmim.training.world import World


@contextmanager
def looking(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the module trains on as it did before."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def autocast(
    device: torch.device, precision: Literal["fp32", "bf16", "fp16"]
) -> AbstractContextManager:
    """The arithmetic of forward and backward passes; weights stay float32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


class StepValues:
    """Named scalars of a step, on their way from the device, which nothing here waits for."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self._names = list(values)
        stacked = torch.stack(list(values.values()))
        self._copied = torch.cuda.Event() if stacked.is_cuda else None
        self._numbers = stacked.to("cpu", non_blocking=stacked.is_cuda)
        if self._copied is not None:
            self._copied.record()

    def read(self) -> dict[str, float]:
        """Wait until they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self._names, self._numbers.tolist(), strict=True))


class Stepper:
    """Makes optimizer steps: accumulates micro-batches, clips once, skips what is not finite.

    The result does not depend on how the global batch was cut, but for rounding: each micro-batch
    counts by its rows.

    Args:
        task: What is trained.
        optimizer: Its ``found_inf`` is set, which leaves weights and moments as they were when a
            gradient is not finite.
        batch_size: Images per step over all processes.
        precision: See ``autocast``; fp16 scales the loss.
        clip: Largest gradient norm; None does not clip.
        seed: Of torch's generator, set anew for each micro-batch from its first place in the run.
        world: The processes.
    """

    def __init__(
        self,
        task: Task,
        optimizer: Muon | torch.optim.AdamW,
        *,
        batch_size: int,
        precision: Literal["fp32", "bf16", "fp16"],
        clip: float | None,
        seed: int,
        world: World,
    ) -> None:
        self.task = task
        self.optimizer = optimizer
        self.batch_size = batch_size
        self.precision: Literal["fp32", "bf16", "fp16"] = precision
        self.clip = clip
        self.seed = seed
        self.world = world
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision == "fp16")
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(self, batches: Iterator[Batch], rate: float) -> dict[str, float]:
        """One step, waited for; see ``begin``."""
        return self.begin(batches, rate).read()

    def begin(self, batches: Iterator[Batch], rate: float) -> StepValues:
        """One step over this process's share of the global batch, which a GPU is still busy with.

        Returns:
            The task's scalars over the global batch, ``grad_norm`` before clipping, and
            ``skipped``, 1 where the step was not made because a gradient was not finite.
        """
        share = self.batch_size // self.world.ranks
        sums: dict[str, Tensor] = {}
        rows = 0
        while rows < share:
            batch = next(batches)
            rows += len(batch.t)
            weight = len(batch.t) / self.batch_size
            # Of every device: drop path draws from the generator of the one it runs on.
            torch.manual_seed(torch_seed(self.seed, int(batch.t[0])))
            batch = batch.to(self.world.device)
            # DistributedDataParallel averages gradients in the last backward pass alone.
            self.task.call.require_backward_grad_sync = rows >= share  # type: ignore[assignment]
            with autocast(self.world.device, self.precision):
                losses = self.task.loss(batch)
            self.scaler.scale(losses["loss"] * (weight * self.world.ranks)).backward()
            for name, value in losses.items():
                term = value.detach().float() * weight
                sums[name] = sums[name] + term if name in sums else term
        norm = self._update(rate)
        totals = self.world.total(torch.stack(list(sums.values()))).unbind()
        skipped = (~torch.isfinite(norm)).float()
        return StepValues(
            {**dict(zip(sums, totals, strict=True)), "grad_norm": norm, "skipped": skipped}
        )

    def _update(self, rate: float) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = full(nn.utils.get_total_norm(grads), self.world)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm
