"""This machine's accelerator, and half precision, against the CPU in float32."""

from dataclasses import replace
from typing import Literal

import torch

from simmim.masking.samplers import RandomSampler
from simmim.models.mim import MaskedImageModel
from simmim.tensors.batch import Batch
from simmim.training.step import autocast
from simmim.training.world import pick_device
from simmim.verify.check import Figure, Ground, SkippedError
from simmim.verify.subjects import SIZE, VIT, build


def masks_on_device(ground: Ground) -> Figure:
    """The masks of 64 places on the accelerator, against those on the CPU. Exact."""
    device = accelerator()
    sampler = RandomSampler(VIT.mask, (6, 8), 16, ground.seed)
    here, there = (
        sampler.draw(Batch(torch.empty(64, 0), torch.arange(64)).to(where)).masked.cpu()
        for where in (torch.device("cpu"), device)
    )
    return Figure(int((here != there).sum()), 0, "patches that differ")


def loss_on_device(ground: Ground) -> Figure:
    """Loss and gradients in float32 on the accelerator, against the CPU.

    From decoded images, masks drawn there. The loss relative, and the norm of the gradients'
    difference over their norm, 1e-4.
    """
    device = accelerator()
    batch, config = _batch(ground), replace(VIT, seed=ground.seed)
    here = _gradient(build(config), batch, "fp32")
    there = _gradient(build(config).to(device), batch.to(device), "fp32")
    return Figure(_apart(here, there), 1e-4, "largest relative difference")


def half_precision(ground: Ground) -> Figure:
    """Loss and gradients in bfloat16, as training computes them, against float32.

    On the accelerator where there is one, with eight bits of precision in products. The loss
    relative, and the norm of the gradients' difference over their norm, 5 %.
    """
    device = pick_device()
    if device.type == "mps":
        raise SkippedError("training uses float32 on this device")
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SkippedError("this GPU has no bfloat16 arithmetic")
    batch, model = _batch(ground).to(device), build(replace(VIT, seed=ground.seed)).to(device)
    full = _gradient(model, batch, "fp32")
    half = _gradient(model, batch, "bf16")
    return Figure(_apart(full, half), 0.05, "largest relative difference")


def accelerator() -> torch.device:
    """This machine's; there may be none."""
    device = pick_device()
    if device.type == "cpu":
        raise SkippedError("no GPU")
    return device


def _batch(ground: Ground) -> Batch:
    images = ground.numbers("decoded").integers(0, 256, (4, 3, *SIZE), "uint8")
    return Batch(torch.from_numpy(images), torch.arange(4))


def _apart(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> float:
    away = float((other[1] - one[1]).norm() / one[1].norm())
    return max(away, abs(other[0] / one[0] - 1))


def _gradient(
    model: MaskedImageModel, batch: Batch, precision: Literal["fp32", "bf16"]
) -> tuple[float, torch.Tensor]:
    """The loss, and the gradients of all parameters in one row, from decoded images."""
    model.zero_grad()
    mask = model.draw(batch)
    with autocast(batch.images.device, precision):
        loss = model(batch, mask)["loss"]
    loss.backward()
    found = [p.grad.detach().flatten() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(found).cpu().double()
