"""Small models of Hugging Face transformers with outputs of its own code.

``python tests/interop/make_transformers4.py``, with transformers 4 installed (it was run with
4.57.6), writes tests/interop/transformers4/NAME: what ``save_pretrained`` writes, and expected.npz.
The tests use the same functions with the transformers that is installed, version 5.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

FOLDER = Path(__file__).parent / "transformers4"

SIZES = {"image_size": 32, "patch_size": 8, "num_channels": 3}
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = SIZES | WIDTHS | {"intermediate_size": 40}
MAE = VIT | {
    "decoder_hidden_size": 20,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 28,
}
SWIN = SIZES | {
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "encoder_stride": 4,
    "mlp_ratio": 2.0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mae": ("ViTMAEForPreTraining", MAE | {"norm_pix_loss": True}),
    "mae_positions": ("ViTMAEForPreTraining", MAE | {"qkv_bias": False}),
    "mae_encoder": ("ViTMAEModel", MAE),
    "vit": ("ViTModel", VIT | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-6}),
    "vit_mim": ("ViTForMaskedImageModeling", VIT | {"encoder_stride": 8}),
    "vit_classifier": ("ViTForImageClassification", VIT | {"num_labels": 3}),
    "swin": ("SwinModel", SWIN),
    "swin_mim": ("SwinForMaskedImageModeling", SWIN | {"qkv_bias": False}),
    "swin_classifier": ("SwinForImageClassification", SWIN | {"num_labels": 3}),
    "beit": ("BeitModel", VIT | {"use_relative_position_bias": True}),
    "beit_shared": (
        "BeitModel",
        VIT
        | {
            "use_shared_relative_position_bias": True,
            "use_relative_position_bias": True,
            "use_absolute_position_embeddings": True,
            "use_mask_token": True,
            "use_mean_pooling": False,
            "layer_scale_init_value": 0.0,
        },
    ),
    "beit_tokens": (
        "BeitForMaskedImageModeling",
        VIT | {"use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 9},
    ),
    "beit_classifier": ("BeitForImageClassification", VIT | {"num_labels": 3}),
    "dinov2": ("Dinov2Model", SIZES | WIDTHS | {"mlp_ratio": 2}),
}
"""Class and arguments of its config."""
KEPT = ("mae", "mae_positions", "vit_mim", "vit_classifier", "swin_mim", "beit", "beit_shared",
        "dinov2")  # fmt: skip
"""Those that are written."""


def build(name: str) -> Any:
    """A model all of whose weights are random, so that none is right by being zero or one."""
    kind, arguments = MODELS[name]
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**arguments))
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for key, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            around = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            value.copy_(around + 0.3 * noise)
        if name == "mae":
            model.decoder.decoder_pos_embed.copy_(_sine_cosine((4, 4), 20))
    return model.eval()


def _sine_cosine(grid: tuple[int, int], width: int) -> torch.Tensor:
    """MAE's: width first, then height; for each the sines, then the cosines."""
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij")
    powers = 10_000.0 ** (-np.arange(width // 4) / (width / 4))
    parts = [np.outer(place.ravel(), powers) for place in (columns, rows)]
    table = np.concatenate([f(part) for part in parts for f in (np.sin, np.cos)], axis=1)
    return torch.tensor(np.pad(table, ((1, 0), (0, 0)))[None], dtype=torch.float32)


def inputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images in steps of 1/128, and which patches (of its head's grid) are masked in each."""
    rng = np.random.default_rng(7)
    images = torch.tensor(rng.integers(-256, 256, (2, 3, 32, 32)) / 128, dtype=torch.float32)
    count, masked = (64, 38) if hasattr(model.config, "depths") else (16, 12)
    places = np.array([rng.permutation(count) for _ in range(2)]) < masked
    return images, torch.tensor(places)


@torch.no_grad()
def outputs(model: Any, images: torch.Tensor, masked: torch.Tensor) -> dict[str, torch.Tensor]:
    """Final tokens of whole images; with a head for pixels, its prediction and loss too."""
    kind = type(model).__name__
    base = getattr(model, model.base_model_prefix, model)
    if "MAE" in kind:
        ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
        order = torch.arange(16.0).expand(2, -1)
        found = {"features": base(images, noise=order).last_hidden_state}
        model.config.mask_ratio = ratio
        if kind == "ViTMAEForPreTraining":
            whole = model(images, noise=masked + order / 32)
            assert torch.equal(whole.mask.bool(), masked)
            found |= {"prediction": whole.logits, "loss": whole.loss}
        return found
    tokens = base(images).last_hidden_state
    if kind == "BeitForMaskedImageModeling":
        tokens = model.layernorm(tokens)
    elif "Beit" in kind and model.config.use_mean_pooling:
        tokens = base.pooler.layernorm(tokens)
    if not kind.endswith("ForMaskedImageModeling") or "Beit" in kind:
        return {"features": tokens}
    fine = masked
    if "Swin" in kind:  # it counts masks on patches, of which a place of its head has four
        square = masked.view(2, 8, 8)
        fine = square.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    whole = model(images, bool_masked_pos=fine)
    return {"features": tokens, "prediction": whole.reconstruction, "loss": whole.loss}


def main() -> None:
    assert transformers.__version__.startswith("4."), transformers.__version__
    for name in KEPT:
        model = build(name)
        model.save_pretrained(FOLDER / name)
        images, masked = inputs(model)
        found = outputs(model, images, masked)
        arrays = {key: value.numpy() for key, value in found.items()}
        np.savez_compressed(
            FOLDER / name / "expected.npz",
            image=(images.numpy() * 128).astype(np.int16),
            masked=masked.numpy(),
            version=transformers.__version__,
            **arrays,
        )


if __name__ == "__main__":
    warnings.simplefilter("error", RuntimeWarning)
    main()
