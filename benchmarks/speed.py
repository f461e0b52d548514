"""Whole training steps: simmim beside a plain loop over the original MAE design.

    python benchmarks/speed.py [--rounds 3] [--batch-size 8] [--profile]

ViT-B/16, 224 pixels, 40 % masked, a decoder of 8 layers, 512 wide; forward, backward and AdamW.
The plain loop has its own encoder and decoder in the way of the MAE paper (arXiv:2111.06377):
attention per block, tokens shuffled and unshuffled, and all decoder positions predicted; under
bf16 autocast once with attention written out and once with torch's fused attention, which is what
timm's blocks call today. The sides take turns within each round; medians and ratios are printed as
JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from simmim.config.decoder import TransformerDecoder
from simmim.config.encoder import EncoderConfig
from simmim.config.optim import OptimConfig
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.machine import pick_precision
from simmim.models.mim import build_model
from simmim.tasks.pretrain import PretrainTask
from simmim.tensors.batch import Batch
from simmim.training.optim import build_optimizer
from simmim.training.step import Stepper
from simmim.training.world import World

SIZE, PATCH, WIDTH, DEPTH, HEADS, DECODER = 224, 16, 768, 12, 12, 512
PIXELS = PixelFormat(
    channels=3,
    low=(0.0,) * 3,
    high=(255.0,) * 3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.fused = fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if self.fused:  # as timm's blocks compute it today
            y = nn.functional.scaled_dot_product_attention(q, k, v)
        else:  # as the original code wrote it
            y = (q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1) @ v
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, width))
        return x + self.mlp(self.norm2(x))


class PlainMae(nn.Module):
    def __init__(
        self,
        ratio: float,
        *,
        fused: bool,
        size: int = SIZE,
        width: int = WIDTH,
        depth: int = DEPTH,
        heads: int = HEADS,
    ) -> None:
        super().__init__()
        self.side = size // PATCH
        self.patches = self.side**2
        self.keep = int(self.patches * (1 - ratio))
        self.embed = nn.Conv2d(3, width, PATCH, PATCH)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, self.patches + 1, width), requires_grad=False)
        self.blocks = nn.Sequential(*(PlainBlock(width, heads, fused=fused) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, DECODER)
        self.mask_token = nn.Parameter(torch.randn(1, 1, DECODER) * 0.02)
        self.decoder_position = nn.Parameter(
            torch.randn(1, self.patches + 1, DECODER), requires_grad=False
        )
        self.decoder = nn.Sequential(*(PlainBlock(DECODER, 16, fused=fused) for _ in range(8)))
        self.decoder_norm = nn.LayerNorm(DECODER)
        self.head = nn.Linear(DECODER, PATCH**2 * 3)

    def forward(self, images: Tensor) -> Tensor:
        b, n = len(images), self.patches
        x = self.embed(images).flatten(2).transpose(1, 2) + self.position[:, 1:]
        shuffle = torch.rand(b, n, device=x.device).argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        keep = shuffle[:, : self.keep, None].expand(-1, -1, x.shape[2])
        token = (self.token + self.position[:, :1]).expand(b, -1, -1)
        x = self.norm(self.blocks(torch.cat([token, x.gather(1, keep)], dim=1)))
        x = self.decoder_embed(x)
        hidden = self.mask_token.expand(b, n - self.keep, -1)
        whole = torch.cat([x[:, 1:], hidden.to(x.dtype)], dim=1)
        whole = whole.gather(1, restore[..., None].expand(-1, -1, DECODER))
        x = torch.cat([x[:, :1], whole], dim=1) + self.decoder_position
        prediction = self.head(self.decoder_norm(self.decoder(x)))[:, 1:]
        target = images.reshape(b, 3, self.side, PATCH, self.side, PATCH)
        target = torch.einsum("nchpwq->nhwpqc", target).reshape(b, n, PATCH**2 * 3)
        error = (prediction - target).square().mean(dim=-1)
        masked = (restore >= self.keep).float()
        return (error * masked).sum() / masked.sum()


def plain(model: PlainMae, images: Tensor, *, bf16: bool) -> Callable[[], None]:
    """A training step on the model's device; AdamW is one kernel there, but for the CPU."""
    device = model.token.device
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1e-4,
        betas=(0.9, 0.95),
        weight_decay=0.05,
        fused=device.type == "cuda",
    )
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1) for x in (PIXELS.mean, PIXELS.std))

    def step() -> None:
        x = (images.to(device, non_blocking=True).float() / 255 - mean) / std
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(x)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def mae(*, fused: bool) -> PlainMae:
    torch.manual_seed(0)
    return PlainMae(ratio=0.4, fused=fused)


def ours(images: Tensor, precision: str) -> tuple[Callable[[], None], str]:
    torch.manual_seed(0)
    config = PretrainConfig(
        encoder=EncoderConfig(model="vit_base_patch16_224"),
        decoder=TransformerDecoder(depth=8, width=DECODER, heads=16),
        optim=OptimConfig(lr=1e-4),
    )
    world = World(0, 1, torch.device("cpu"))
    task = PretrainTask(build_model(config, PIXELS, (SIZE, SIZE)))
    if precision == "auto":
        precision, _ = pick_precision(world.device, task.model.encoder.width)
    optimizer = build_optimizer(task.module, task.roles(), config.optim, world)
    stepper = Stepper(
        task,
        optimizer,
        batch_size=len(images),
        precision=precision,  # type: ignore[arg-type]
        clip=config.optim.clip,
        seed=0,
        world=world,
    )
    task.module.train()
    batch = Batch(images=images, t=torch.arange(len(images)))

    def step() -> None:
        stepper.step(iter([batch]), rate=1e-4)

    return step, precision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--profile", action="store_true", help="show where our step's time goes")
    options = parser.parse_args()
    images = torch.randint(0, 256, (options.batch_size, 3, SIZE, SIZE), dtype=torch.uint8)
    step, precision = ours(images, options.precision)
    if options.profile:
        step()
        with torch.profiler.profile() as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
        return
    sides = {
        f"simmim {precision}": step,
        "plain fp32": plain(mae(fused=False), images, bf16=False),
        "plain bf16": plain(mae(fused=False), images, bf16=True),
        "plain bf16, torch's fused attention": plain(mae(fused=True), images, bf16=True),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if number:  # the first round fills caches
                times[name].append(time.perf_counter() - start)
    speed = {name: options.batch_size / statistics.median(t) for name, t in times.items()}
    ours_speed = speed[f"simmim {precision}"]
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "images_per_s": {name: round(value, 2) for name, value in speed.items()},
                "simmim_over": {n: round(ours_speed / v, 2) for n, v in speed.items()},
                "seconds": {name: [round(x, 3) for x in t] for name, t in times.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
