"""All checks, in the order in which they are made."""

from functools import partial

from simmim.config.target import PixelTarget
from simmim.verify import (
    backbones,
    decoders,
    device,
    exports,
    histograms,
    huggingface,
    leaks,
    losses,
    masks,
    runs,
    steps,
)
from simmim.verify.check import Check
from simmim.verify.subjects import BEIT, DEIT, EVA, FAST, SWIN, VIT

CHECKS: tuple[tuple[str, tuple[Check, ...]], ...] = (
    (
        "losses and targets",
        (
            *(
                Check(
                    f"{loss} loss, {'normalised' if norm else 'raw'} pixels",
                    "model.loss, loss and loss_sum with the sum over masked pixels in float64",
                    partial(losses.pixel_loss, target=PixelTarget(loss=loss, norm_pix=norm)),
                )
                for loss in ("l2", "l1")
                for norm in (False, True)
            ),
            Check(
                "order of values",
                "the target with a loop over patches, rows, columns and channels",
                losses.target_values,
            ),
            Check(
                "normalised patches",
                "the target with (x - mean)/√(unbiased variance + 1e-6), and back to pixels",
                losses.target_normalised,
            ),
            Check(
                "HOG",
                "the target with a loop over pixels in float64",
                histograms.hog,
            ),
            Check(
                "layout",
                "its loss with a loop over pixels in float64",
                histograms.layout,
            ),
            Check(
                "normalised input",
                "the encoder's input with ((value - low)/(high - low) - mean)/std",
                losses.normalisation,
            ),
            Check(
                "explained detail",
                "both baselines with sums over pixels in float64",
                losses.explained_detail,
            ),
        ),
    ),
    (
        "masks and order",
        (
            Check("hash", "splitmix64 on tensors with plain integers", masks.hash_vectors),
            Check("mask counts", "three roundings with exact fractions", masks.counts),
            Check("mask units", "32-pixel units: whole, and so many of them", masks.units),
            Check("places are equal", "196 places with chance (chi-square)", masks.positions),
            Check("pairs are equal", "66 pairs of places with chance (chi-square)", masks.pairs),
            Check(
                "a place has one mask",
                "micro-batches of 32, 8 and 1 with scores in plain integers",
                masks.same_for_a_place,
            ),
            Check("order of images", "each epoch with every image once", masks.order),
        ),
    ),
    (
        "training step",
        (
            Check("positions", "sine-cosine embedding with the formula", steps.positions),
            Check(
                "AdamW step",
                "micro-batches, clipping, groups and AdamW with numpy in float64",
                steps.adamw_step,
            ),
            Check(
                "Muon step",
                "the same with the matrices' singular values by numpy in float64",
                steps.muon_step,
            ),
            Check("schedule", "the rate of every step with the formula", steps.schedule),
        ),
    ),
    (
        "leak test",
        tuple(
            Check(
                f"no leak, {name}",
                "masked pixels NaN with whole images: features, prediction, gradients",
                partial(leaks.leak, config=config, **sizes),
            )
            for name, config, sizes in (
                ("ViT", VIT, {}),
                ("DeiT distilled", DEIT, {}),
                ("EVA-02", EVA, {}),
                ("BEiT, mask token", BEIT, {}),
                ("Swin, mask token", SWIN, {"size": (64, 64)}),
            )
        ),
    ),
    (
        "encoders and decoders",
        (
            *(
                Check(
                    f"{name} on visible patches",
                    f"features with timm's, {how}",
                    partial(backbones.against_timm, config=config),
                )
                for name, config, how in (
                    ("ViT", VIT, "patches left out by its patch_drop"),
                    ("DeiT distilled", DEIT, "patches left out by its patch_drop"),
                    ("EVA-02", EVA, "patches left out by its patch_drop"),
                    ("BEiT", BEIT, "masked places closed to attention"),
                )
            ),
            Check(
                "transformer decoder",
                "model.predict with the blocks in numpy in float64",
                decoders.transformer,
            ),
            Check(
                "linear decoder",
                "model.predict with the layer in numpy in float64",
                decoders.linear,
            ),
        ),
    ),
    (
        "runs",
        (
            Check(
                "split batches", "weights after 6 steps: 1 micro-batch with 3 and 12", runs.split
            ),
            Check("two processes", "weights after 6 steps: 2 processes with 1", runs.two_processes),
            Check(
                "resume, float32",
                "a run cut after 3 of 6 steps with one that was not",
                partial(runs.resume, precision="fp32"),
            ),
            Check(
                "resume, bfloat16",
                "a run cut after 3 of 6 steps with one that was not",
                partial(runs.resume, precision="bf16"),
            ),
            Check(
                "resume, simmim-fast",
                "a run cut after 3 of 6 steps with one that was not",
                partial(runs.resume, precision="fp32", config=FAST),
            ),
            Check(
                "resume, new process",
                "a run cut after 3 of 6 steps with one that was not",
                runs.resume_elsewhere,
            ),
        ),
    ),
    (
        "exports",
        (
            *(
                Check(
                    f"encoder.safetensors, {name}",
                    "what timm computes with the files, and simmim.load reads back",
                    partial(exports.encoder_file, config=config, **sizes),
                )
                for name, config, sizes in (
                    ("ViT", VIT, {}),
                    ("DeiT distilled", DEIT, {}),
                    ("EVA-02", EVA, {}),
                    ("BEiT", BEIT, {}),
                    ("Swin", SWIN, {"size": (64, 64)}),
                )
            ),
            *(
                Check(
                    f"timm folder, {name}",
                    "features of the folder that timm opens, and its weights",
                    partial(exports.timm_folder, config=config, **sizes),
                )
                for name, config, sizes in (
                    ("ViT", VIT, {}),
                    ("BEiT", BEIT, {}),
                    ("Swin", SWIN, {"size": (64, 64)}),
                )
            ),
            Check("torch program", "features by torch.export.load", exports.program),
            Check("ONNX", "features by onnxruntime", exports.onnx_graph),
            *(
                Check(
                    f"transformers, {name}",
                    f"{what} by transformers, weights read back",
                    partial(huggingface.round_trip, config=config, **settings),
                )
                for name, what, config, settings in (
                    ("ViT", "tokens and prediction", VIT, {"whole": True}),
                    ("BEiT", "tokens", BEIT, {"whole": False}),
                    ("Swin", "tokens", SWIN, {"whole": True, "side": 64}),
                )
            ),
        ),
    ),
    (
        "this machine",
        (
            Check("bfloat16", "loss and gradients with float32", device.half_precision),
            Check("masks on the GPU", "masks of 64 places with the CPU's", device.masks_on_device),
            Check("loss on the GPU", "loss and gradients with the CPU's", device.loss_on_device),
        ),
    ),
)
"""Groups and their checks."""
