"""Each kind of check can fail: a fault is put into the code, and the right check must find it."""

import pytest

from simmim.config.mask import RandomMask
from simmim.data.loading import order
from simmim.evaluate import detail
from simmim.extras import layout
from simmim.interop.export import huggingface, model, timm
from simmim.masking import samplers
from simmim.masking.samplers import RandomSampler
from simmim.models import backbones, decoders, initial, mim, positions
from simmim.models.encoder import Encoder
from simmim.models.mim import MaskedImageModel
from simmim.runs import encoder as deploy
from simmim.targets import hog, pixels
from simmim.targets.pixels import Pixels
from simmim.tensors import counter as random
from simmim.tensors import gradients, patches
from simmim.tensors.mask import Mask
from simmim.training import loop, muon, optim, saves
from simmim.training.schedule import Schedule
from simmim.training.step import Stepper
from simmim.verify import exports, losses, runs, steps
from simmim.verify import huggingface as verify_huggingface

RAW, NORMALISED = "l2 loss, raw pixels", "l2 loss, normalised pixels"
FAULTS = {
    "biased variance": (
        (Pixels, "statistics", "keepdim=True", "keepdim=True, correction=0"),
        {NORMALISED, "l1 loss, normalised pixels", "normalised patches"},
    ),
    "no epsilon": (
        (Pixels, "statistics", "(variance + _EPSILON)", "variance"),
        {NORMALISED},
    ),
    "epsilon beside the root": (
        (Pixels, "statistics", "(variance + _EPSILON).sqrt()", "variance.sqrt() + _EPSILON"),
        {NORMALISED},
    ),
    "L1 instead of L2": (
        (Pixels, "loss", "F.mse_loss", "F.l1_loss"),
        {RAW, NORMALISED},
    ),
    "L2 instead of L1": ((Pixels, "loss", "F.l1_loss", "F.mse_loss"), {"l1 loss, raw pixels"}),
    "loss_sum per batch": ((Pixels, "loss", "values[0].numel()", "values.numel()"), {RAW}),
    "transposed patches": (
        (patches, "patchify", "0, 2, 4, 3, 5, 1", "0, 4, 2, 3, 5, 1", pixels),
        {"order of values"},
    ),
    "transposed values": (
        (patches, "patchify", "0, 2, 4, 3, 5, 1", "0, 2, 4, 5, 3, 1", pixels, mim, detail),
        {"order of values", RAW, "ViT on visible patches"},
    ),
    "input not shifted by its low": (
        (patches, "normalise", "if any(pixels.low):", "if False:", losses),
        {"normalised input"},
    ),
    "a wider blur": ((detail, "interpolate", "patch / 2", "patch"), {"explained detail"}),
    "one more masked": (
        (RandomMask, "count", "max(masked, 1)", "max(masked + 1, 1)"),
        {"mask counts"},
    ),
    "another shift in the hash": (
        (random, "mix", "27", "28"),
        {"hash", "a place has one mask"},
    ),
    "masks by place in the micro-batch": (
        (random, "uniform", "t.long()", "(t - t[0]).long()", samplers),
        {"a place has one mask"},
    ),
    "later places masked more often": (
        (
            RandomSampler,
            "scores",
            "return noise",
            "return noise + 0.1 * (0 * noise + 1).cumsum(1) / noise.shape[1]",
        ),
        {"places are equal", "pairs are equal"},
    ),
    "neighbours masked together": (
        (RandomSampler, "scores", "return noise", "return noise + 0.3 * noise.roll(1, 1)"),
        {"pairs are equal"},
    ),
    "units that are not squares": (
        (Mask, "refine", "repeat_interleave(factor, 2)", "repeat(1, 1, factor)"),
        {"mask units"},
    ),
    "an image missed in each epoch": (
        (order, "permute", "[position]", "[position // 2]"),
        {"order of images"},
    ),
    "rows and columns of positions swapped": (
        (positions, "sine_cosine", "(column, row)", "(row, column)", decoders, initial, steps),
        {"positions"},
    ),
    "all decayed": (
        (optim, "parameter_groups", "role not in config.no_decay", "True"),
        {"AdamW step"},
    ),
    "depth not counted": (
        (optim, "parameter_groups", "(top - depth)", "0"),
        {"AdamW step"},
    ),
    "micro-batches counted alike": (
        (Stepper, "begin", "len(batch.t) / self.batch_size", "1 / 3"),
        {"AdamW step", "split batches"},
    ),
    "clipped to twice the norm": (
        (Stepper, "_update", "self.clip, norm)", "2 * self.clip, norm)"),
        {"AdamW step"},
    ),
    "momentum without the gradient": (
        (muon.Muon, "_direction", "grad.lerp(moments", 'moments["momentum"].lerp(moments'),
        {"Muon step"},
    ),
    "orthogonalised less": (
        (muon, "orthogonal", "range(_ITERATIONS)", "range(_ITERATIONS - 2)"),
        {"Muon step"},
    ),
    "Sobel's middle not doubled": (
        (gradients, "gradients", "2 * padded[..., 1:-1]", "padded[..., 1:-1]", hog, layout),
        {"HOG", "layout"},
    ),
    "colours summed": (
        (layout.Layout, "forward", ".div_(self.count)", ""),
        {"layout"},
    ),
    "schedule off by one": (
        (Schedule, "rate", "(step - self.warmup)", "(step + 1 - self.warmup)"),
        {"schedule"},
    ),
    "warm-up off by one": ((Schedule, "rate", "(step + 1)", "step"), {"schedule"}),
    "patches projected before they are gathered, and mixed": (
        (
            MaskedImageModel,
            "encode",
            "encoder.project(pick(patches, fine.visible_index))",
            "pick((lambda x: x + 1e-6 * x.mean(1, keepdim=True))(encoder.project(patches)), "
            "fine.visible_index)",
        ),
        {"no leak, ViT", "no leak, EVA-02", "no leak, BEiT, mask token"},
    ),
    "no mask token": (
        (
            MaskedImageModel,
            "encode",
            "tokens = self.mask_token.to(seen.dtype).expand(len(seen), patches.shape[1], -1)",
            "tokens = encoder.project(patches)",
        ),
        {"no leak, BEiT, mask token", "no leak, Swin, mask token"},
    ),
    "positions of other patches": (
        (backbones, "take", "F.embedding(index, table)", "table[: index.shape[1]][None]"),
        {"ViT on visible patches", "EVA-02 on visible patches"},
    ),
    "mask tokens without positions": (
        (
            decoders.Transformer,
            "forward",
            "self.mask_token.to(seen.dtype) + position[mask.masked_index]",
            "self.mask_token.to(seen.dtype) + 0 * position[mask.masked_index]",
        ),
        {"transformer decoder"},
    ),
    "visible places predicted": (
        (decoders.Linear, "forward", "mask.masked_index", "mask.visible_index"),
        {"linear decoder"},
    ),
    "optimizer's state dropped": (
        (
            saves,
            "restore",
            "restore_optimizer(stepper.optimizer, checkpoint.optimizer())",
            "pass",
            loop,
        ),
        {"resume, float32"},
    ),
    "random numbers not drawn anew": (
        (
            Stepper,
            "begin",
            "torch.manual_seed(torch_seed(self.seed, int(batch.t[0])))",
            "pass",
        ),
        {"resume, float32"},
    ),
    "another image after a resume": (
        (loop, "train", "stream.start(start)", "stream.start(0)", runs),
        {"resume, float32"},
    ),
    "a weight corrupted on export": (
        (deploy, "write_weights", "value.detach().cpu()", "1.001 * value.detach()"),
        {"encoder.safetensors, ViT"},
    ),
    "a weight of a block not written": (
        (
            Encoder,
            "timm_state",
            "merged(self.net)",
            "merged(self.net.blocks)",
        ),
        {"encoder.safetensors, ViT"},
    ),
    "a weight corrupted for timm": (
        (timm, "write_timm", "net.load_state_dict(state)", "net.blocks.zero_grad()", exports),
        {"timm folder, ViT"},
    ),
    "a weight corrupted for transformers": (
        (
            huggingface,
            "write_huggingface",
            "value.detach().cpu()",
            "(1.001 * value.detach()).cpu()",
            verify_huggingface,
        ),
        {"transformers, BEiT"},
    ),
    "another pooling in graphs": (
        (model.Graph, "forward", "tokens.mean(1)", "tokens[:, 1:].mean(1)"),
        {"torch program"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, mutate, verify, capsys: pytest.CaptureFixture[str]):
    change, finders = FAULTS[fault]
    mutate(*change)
    assert verify(*finders) == 1
    told = capsys.readouterr()
    for name in finders:
        assert f"FAILED   {name} " in told.out
        assert name in told.err
    assert "passed  " not in told.out
