"""Write the table of simmim/config/models.py: `python benchmarks/list_models.py`.

A model is in it when its class is exactly one that has an adapter, behind a plain patch embedding.
"""

import re
import subprocess
import sys
from pathlib import Path

import timm
import torch
from timm.layers import PatchEmbed

from simmim.models.backbones import ADAPTERS

FILE = Path(__file__).parents[1] / "simmim" / "config" / "models.py"
MODULES = (
    "vision_transformer",
    "vision_transformer_hybrid",
    "deit",
    "eva",
    "beit",
    "swin_transformer",
)


def rows() -> list[str]:
    """One line of the table for each model, by name."""
    lines = []
    for name in sorted({name for module in MODULES for name in timm.list_models(module=module)}):
        with torch.device("meta"):
            net = timm.create_model(name, num_classes=0)
        family, embed = type(net).__name__, net.patch_embed
        if type(net) not in ADAPTERS or type(embed) is not PatchEmbed:
            continue
        blocks = net.blocks if hasattr(net, "blocks") else [b for s in net.layers for b in s.blocks]
        told = (family, net.num_features, len(blocks), embed.patch_size[0], max(embed.img_size))
        lines.append(f'    "{name}": Model{told},'.replace("'", '"'))
    return lines


def main() -> None:
    """Replace the table in place and format the file."""
    head, _, _ = FILE.read_text().partition("MODELS: dict[str, Model] = {")
    head = re.sub(r'TIMM = ".*"', f'TIMM = "{timm.__version__}"', head)
    table = "\n".join(rows())
    FILE.write_text(f"{head}MODELS: dict[str, Model] = {{\n{table}\n}}\n")
    subprocess.run([sys.executable, "-m", "ruff", "format", str(FILE)], check=True)


if __name__ == "__main__":
    main()
