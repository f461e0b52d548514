"""What weights are called in Hugging Face transformers, and their shapes: to read and to write.

transformers 4 and 5 write the same names, but for the decoder of ViTMAE; in memory, and so in a
saved ``state_dict()``, transformers 5 has others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from simmim.errors import CheckpointError

PATCHES = "embeddings.patch_embeddings.projection.weight"
"""In every model of these families, after the prefix, in every version."""
PREFIXES = {"vit_mae": "vit.", "vit": "vit.", "swin": "swin.", "beit": "beit.", "dinov2": "dinov2."}
"""What stands before an encoder's names once something else is saved with it."""

MOST = 30
"""Names that a message tells."""

Words = Mapping[str, str]

_FILE: Words = {
    "norm1": "layernorm_before",
    "attn.q": "attention.attention.query",
    "attn.k": "attention.attention.key",
    "attn.v": "attention.attention.value",
    "attn.proj": "attention.output.dense",
    "attn.relative_position_bias_table": (
        "attention.attention.relative_position_bias.relative_position_bias_table"
    ),
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
}
_MEMORY: Words = {
    "norm1": "layernorm_before",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.proj": "attention.o_proj",
    "attn.relative_position_bias_table": "relative_position_bias.relative_position_bias_table",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "gamma_1": "lambda_1",
    "gamma_2": "lambda_2",
}
_SCALED: Words = {
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
TABLE = "attn.relative_position_bias_table"
VIT = (_FILE, _MEMORY)
DINO = ({**_FILE, **_SCALED}, {**_MEMORY, **_SCALED})
SWIN = (
    {
        **{
            ours: word.replace("attention.attention", "attention.self")
            for ours, word in VIT[0].items()
        },
        TABLE: "attention.self.relative_position_bias_table",
    },
    {**_MEMORY, TABLE: "attention.relative_position_bias.relative_position_bias_table"},
)
"""Our words in a block, and those of the files; then those of transformers 5 in memory."""


class Places(dict[str, tuple[tuple[int, ...], tuple[str, ...]]]):
    """Where weights are in a file, by our names.

    The shape that each must have, and what it may be called, as transformers 4 writes it first.
    """

    def tensor(self, ours: str, shape: Sequence[int], *theirs: str) -> None:
        """One tensor."""
        self[ours] = tuple(shape), theirs

    def layer(self, ours: str, shape: Sequence[int], *theirs: str, bias: bool = True) -> None:
        """A weight, and a bias for each of its first dimension."""
        self.tensor(f"{ours}.weight", shape, *(f"{name}.weight" for name in theirs))
        if bias:
            self.tensor(f"{ours}.bias", shape[:1], *(f"{name}.bias" for name in theirs))

    def block(
        self,
        ours: str,
        stems: Sequence[str],
        words: Sequence[Words],
        *,
        width: int,
        hidden: int,
        biases: str = "qkv",
        scale: str | None = None,
        table: tuple[int, int] | None = None,
    ) -> None:
        """A transformer block.

        Args:
            ours: What stands before our names.
            stems: What may stand before theirs.
            words: Their words for ours.
            width: Of the tokens.
            hidden: Of the MLP.
            biases: Which of q, k and v have one.
            scale: Our names of what scales its two branches, ``gamma_{}`` or ``ls{}.gamma``.
            table: Shape of its relative positions.
        """

        def theirs(key: str) -> list[str]:
            return [stem + word[key] for stem in stems for word in words]

        shapes = {
            "norm1": (width,),
            "norm2": (width,),
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }
        for key, shape in shapes.items():
            self.layer(f"{ours}{key}", shape, *theirs(key))
        for letter in "qkv":
            key = f"attn.{letter}"
            self.layer(f"{ours}{key}", (width, width), *theirs(key), bias=letter in biases)
        for number in (1, 2) if scale else ():
            key = str(scale).format(number)
            self.tensor(f"{ours}{key}", (width,), *theirs(key))
        if table:
            self.tensor(f"{ours}{TABLE}", table, *theirs(TABLE))


def gather(state: Mapping[str, Tensor], places: Places) -> tuple[dict[str, Tensor], set[str]]:
    """The weights by our names, and the names in the file that were used.

    Raises:
        CheckpointError: Names are missing, or shapes wrong; they are told.
    """
    found: dict[str, str] = {}
    spelling: Counter[tuple[str, int]] = Counter()  # by the first part of our name
    for ours, (_, theirs) in places.items():
        name = next((name for name in theirs if name in state), None)
        if name is not None:
            found[ours] = name
            part = ours.partition(".")[0]
            spelling.update((part, n) for n, other in enumerate(theirs) if other == name)
    missing = [
        max(enumerate(theirs), key=lambda option: spelling[ours.partition(".")[0], option[0]])[1]
        for ours, (_, theirs) in places.items()
        if ours not in found
    ]
    wrong = [
        f"{name} is {_by(state[name].shape)} and should be {_by(places[ours][0])}"
        for ours, name in found.items()
        if tuple(state[name].shape) != places[ours][0]
    ]
    if missing or wrong:
        more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
        faults = [f"missing: {', '.join(missing[:MOST])}{more}"] if missing else []
        raise CheckpointError(
            "these weights do not fit their config.json. " + "; ".join(faults + wrong[:MOST]) + "."
        )
    return {ours: state[name] for ours, name in found.items()}, set(found.values())


def join_qkv(weights: Mapping[str, Tensor], *, apart: bool = False) -> dict[str, Tensor]:
    """Queries, keys and values as timm has them: in one matrix.

    Args:
        weights: With ``attn.q.weight`` and so on in the names.
        apart: Biases of queries and values apart, and none of keys (BEiT).
    """
    joined: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, _, rest = name.rpartition("attn.")
        if rest not in {"q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias"}:
            joined[name] = value
        elif apart and rest.endswith("bias"):
            joined[f"{stem}attn.{rest[0]}_bias"] = value
        elif rest.startswith("q"):
            part = rest[2:]
            joined[f"{stem}attn.qkv.{part}"] = torch.cat(
                [weights[f"{stem}attn.{letter}.{part}"] for letter in "qkv"]
            )
    return joined


def split_qkv(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``join_qkv``."""
    parted: dict[str, Tensor] = {}
    for name, value in weights.items():
        stem, mark, part = name.rpartition("attn.qkv.")
        if mark:
            parts = value.chunk(3)
            parted |= {f"{stem}attn.{letter}.{part}": parts[n] for n, letter in enumerate("qkv")}
        elif name.endswith(("attn.q_bias", "attn.v_bias")):
            parted[f"{name[:-5]}.bias"] = value
        else:
            parted[name] = value
    return parted


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape)) or "one number"
