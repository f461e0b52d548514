"""From what a user names to a checkpoint: a run, a file, a folder, `timm:NAME`, `hf:REPO`."""

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor

from simmim.config.models import find, suggest
from simmim.config.nearest import did_you_mean
from simmim.config.run import PretrainConfig, TrainingConfig
from simmim.errors import CheckpointError, ConfigError
from simmim.interop.checkpoint import ModelCheckpoint, Pretraining, Settings
from simmim.interop.layouts import original, timm
from simmim.interop.layouts.huggingface import is_huggingface, read_huggingface
from simmim.interop.layouts.shape import pick_pixels, sort_out
from simmim.interop.layouts.timm import DERIVED, named_settings
from simmim.interop.weight_files import (
    Weights,
    read_json,
    read_own_weights,
    read_shards,
    read_weights,
)
from simmim.models.build import build_encoder
from simmim.runs.checkpoints import Checkpoint, Checkpoints, read_checkpoint
from simmim.runs.encoder import CARD, WEIGHTS, read_card, read_pixels
from simmim.runs.folder import CONFIG, command_of, read_config

LAYOUTS: list[tuple[Callable[[Mapping[str, Tensor]], bool], Callable[..., ModelCheckpoint]]] = [
    (original.is_simmim, original.read_simmim),
    (original.is_mae, original.read_mae),
    (original.is_beit, original.read_beit),
    (original.is_swin, original.read_swin),
    (timm.is_timm, timm.read_timm),
]
"""How a state dict is recognised, by its names, in this order."""
WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
"""What libraries call the weights in a folder with a config.json."""


def open_source(
    source: str | Path, given: Mapping[str, Any] | None = None, *, whole: bool = False
) -> ModelCheckpoint:
    """What a source holds.

    Args:
        source: A run folder, a file of weights, a folder that ``save_pretrained`` or timm wrote,
            ``timm:NAME``, or ``hf:REPO``.
        given: What the weights do not say (``num_heads``, ``norm_pix_loss``, …), by the names of
            the code that wrote them. It goes before what a JSON file beside them says (NAME.json,
            or the entry NAME of index.json), and that before what the file itself says.
        whole: Read the decoder of a run too; that of any other source is always read.

    Raises:
        CheckpointError: Nothing there, damaged, of an unknown layout, or not whole.
    """
    text, given = str(source), dict(given or {})
    _check_given(given)
    try:
        if text.startswith("timm:"):
            return _from_timm(text.removeprefix("timm:"), given)
        if text.startswith("hf:"):
            return _from_folder(_fetch(text.removeprefix("hf:")), given, whole=whole)
        path = Path(source)
        if path.is_dir():
            return _from_folder(path, given, whole=whole)
        if path.is_file():
            return _from_file(path, given, whole=whole)
    except CheckpointError as error:
        if text in str(error):
            raise
        raise CheckpointError(f"{text}: {error}") from error
    raise CheckpointError(
        f"{source}: there is no such file or folder. Give a run folder, a file of weights, a "
        "folder that save_pretrained wrote, timm:NAME or hf:REPO."
    )


GIVEN = ("model", "num_heads", "decoder_num_heads", "norm_pix_loss", "mask_ratio",
         "mask_patch_size", "img_size", "mean", "std")  # fmt: skip
"""What weights do not show, and a caller may say."""
SHOWN = ("patch_size", "in_chans", "num_classes", "embed_dim", "depth", "depths", "mlp_ratio",
         "decoder_embed_dim", "decoder_depth", "window_size", "qkv_bias", "init_values", "ape",
         "patch_norm", "use_abs_pos_emb", "use_rel_pos_bias", "use_shared_rel_pos_bias",
         "use_mean_pooling", "loss", "norm_pix", "image_size")  # fmt: skip
"""Further arguments of the original codes, which weights do show: they change nothing."""


def _check_given(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in (*GIVEN, *SHOWN):
            raise ConfigError(
                f"there is no setting {name!r} of a checkpoint.{did_you_mean(name, GIVEN)} "
                f"Known: {', '.join(GIVEN)}."
            )
    model = given.get("model")
    if model is not None and find(str(model)) is None:
        near = suggest(str(model))
        raise ConfigError(
            f"model={model!r} is not a timm model that simmim supports."
            + (f" Did you mean {', '.join(near)}?" if near else "")
        )


def checkpoint_of(weights: Weights, given: Mapping[str, Any]) -> ModelCheckpoint:
    """The checkpoint in a state dict, by its names alone.

    Raises:
        CheckpointError: No known layout.
    """
    settings = Settings({**weights.settings, **given})
    for fits, read in LAYOUTS:
        if fits(weights.state):
            return _noted(read(weights.state, settings), weights)
    if is_huggingface(weights.state):
        return _noted(read_huggingface(weights.state, given), weights)
    raise CheckpointError(
        f"its names are of no layout that simmim knows: {', '.join(sorted(weights.state)[:4])}, …. "
        "Known: SimMIM, MAE, BEiT, timm's ViT, DeiT, EVA, DINOv2/3 and Swin, and Hugging Face's "
        "ViT, ViTMAE, BEiT and Swin (docs/checkpoints.md)."
    )


def _noted(found: ModelCheckpoint, weights: Weights) -> ModelCheckpoint:
    """A checkpoint with what was chosen among the weights in its file."""
    return replace(found, notes=(*weights.notes, *found.notes))


def _from_file(path: Path, given: Mapping[str, Any], *, whole: bool) -> ModelCheckpoint:
    folder = path.parent
    if path.name == WEIGHTS and (folder / CARD).is_file():
        return _from_folder(folder, given, whole=whole)
    if path.name == "model.safetensors" and (folder / "state.json").is_file():
        return _from_folder(folder, given, whole=True)
    if path.name in WEIGHT_FILES and (folder / "config.json").is_file():
        return _from_folder(folder, given, whole=whole)
    return checkpoint_of(read_weights(path), {**_beside(path), **given})


def _beside(path: Path) -> dict[str, Any]:
    """Settings in a JSON file beside a file of weights: NAME.json, or NAME in index.json."""
    own = path.with_suffix(".json")
    if own != path and own.is_file():
        return read_json(own)
    index = path.with_name("index.json")
    if index.is_file():
        entry = read_json(index).get(path.stem)
        if isinstance(entry, dict):
            return entry
    return {}


def _from_folder(folder: Path, given: Mapping[str, Any], *, whole: bool) -> ModelCheckpoint:
    if (folder / "state.json").is_file():
        return _of_run(folder.absolute().parents[1], read_checkpoint(folder))
    if whole and (folder / CONFIG).is_file() and command_of(folder) == PretrainConfig.command:
        notes: list[str] = []
        newest = Checkpoints(folder / "checkpoints", keep=1).read(
            lambda _, error: notes.append(f"passed over: {error}")
        )
        if newest is not None:
            return replace(_of_run(folder, newest), notes=tuple(notes))
    if (folder / CARD).is_file() or (folder / CONFIG).is_file():
        return _deployed(folder)
    if (folder / "config.json").is_file():
        return _configured(folder, given)
    files = [file for file in sorted(folder.iterdir()) if file.suffix in _SUFFIXES]
    if len(files) == 1:
        return _from_file(files[0], given, whole=whole)
    raise CheckpointError(
        f"{folder} is no run folder ({CARD} is missing) and has no config.json beside weights. "
        + (
            f"Name one of its {len(files)} files of weights."
            if files
            else "RUN comes first, then DATA; it is a run, a file of weights, timm:NAME or hf:REPO."
        )
    )


_SUFFIXES = {".safetensors", ".pth", ".pt", ".bin", ".ckpt"}


def _configured(folder: Path, given: Mapping[str, Any]) -> ModelCheckpoint:
    """A folder with config.json: of timm, or of transformers."""
    config = read_json(folder / "config.json")
    file = next((folder / n for n in WEIGHT_FILES if (folder / n).is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{folder} has config.json but none of the weights {', '.join(WEIGHT_FILES[:2])}."
        )
    weights = read_shards(file) if file.suffix == ".json" else read_weights(file)
    if "architecture" in config:
        found = timm.read_timm(weights.state, Settings({**named_settings(config).given, **given}))
        return _as_exported(_noted(found, weights), config.get("simmim"))
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        config["_preprocessor"] = read_json(processor)
    return _noted(read_huggingface(weights.state, {**config, **given}), weights)


def _as_exported(found: ModelCheckpoint, own: Any) -> ModelCheckpoint:
    """An encoder that simmim exported, with the values of images as they were measured."""
    if not isinstance(own, Mapping) or "pixels" not in own:
        return found
    try:
        return replace(found, pixels=read_pixels(dict(own)), own=True)
    except TypeError as error:
        raise CheckpointError(f"the part `simmim` of config.json is damaged: {error}.") from error


def _from_timm(name: str, given: Mapping[str, Any]) -> ModelCheckpoint:
    """Weights that timm fetches, or has fetched before."""
    import timm as library

    if find(name) is None:
        near = suggest(name)
        raise CheckpointError(
            f"timm:{name} is not a timm model that simmim supports."
            + (f" Did you mean {', '.join(near)}?" if near else "")
            + " All of them: simmim models"
        )
    _check_hub()
    try:
        net: Any = library.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the network and the hub fail in many ways
        raise CheckpointError(_unreachable(f"timm:{name}", error)) from error
    card = net.pretrained_cfg
    kept, left_out, notes = sort_out(net.state_dict())
    patch = int(net.patch_embed.patch_size[0])
    rows, columns = net.patch_embed.grid_size  # timm ignores what a patch does not divide
    channels = net.patch_embed.proj.in_channels
    return ModelCheckpoint(
        layout=f"timm's {card.get('architecture', name)}.{card.get('tag') or 'default'}",
        model=name.partition(".")[0],
        image_size=(rows * patch, columns * patch),
        patch=patch,
        pixels=pick_pixels(channels, Settings({**card, **given})),
        encoder=kept,
        left_out=left_out,
        notes=tuple(notes),
        licence=card.get("license"),
    )


def _fetch(repository: str) -> Path:
    """The folder of a Hugging Face repository, fetched, or as it was fetched before."""
    from huggingface_hub import snapshot_download

    name, _, revision = repository.partition("@")
    patterns = ["config.json", "preprocessor_config.json", "encoder.json", "*.safetensors",
                "*.bin", "*.pth", "*.index.json"]  # fmt: skip
    _check_hub()
    try:
        found = snapshot_download(name, revision=revision or None, allow_patterns=patterns)
    except Exception as error:  # the network and the hub fail in many ways
        raise CheckpointError(_unreachable(f"hf:{name}", error)) from error
    return Path(found)


def _check_hub() -> None:
    """Where the hub does not answer, let its library use what was fetched before, and not retry.

    It would try again for a minute. Behind a proxy nothing is checked.
    """
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if getproxies() or constants.HF_HUB_OFFLINE or address.hostname is None:
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((address.hostname, port), timeout=5).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def _unreachable(source: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return (
        f"{source} could not be fetched: {reason}. Without a network, fetch it elsewhere and give "
        "the file or folder; what was fetched before is found in HF_HOME (~/.cache/huggingface). "
        "A gated or private repository needs a token in HF_TOKEN."
    )


def _deployed(folder: Path) -> ModelCheckpoint:
    """encoder.safetensors and encoder.json, as simmim writes them."""
    card = read_card(folder)
    try:
        height, width = card["image_size"]
        pixels, patch = read_pixels(card), int(card["patch_size"])
        model, arguments = str(card["model"]), dict(card["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CARD} is damaged: {error!r}.") from error
    return ModelCheckpoint(
        layout="simmim, encoder",
        model=model,
        arguments=_own_arguments(arguments),
        image_size=(height, width),
        patch=patch,
        pixels=pixels,
        encoder=read_own_weights(folder / WEIGHTS),
        licence=card.get("licence"),
        own=True,
    )


def _own_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those that do not follow from sizes; whether tables are shared, the weights say."""
    derived = DERIVED | {"use_rel_pos_bias"}
    return {name: value for name, value in arguments.items() if name not in derived}


def _of_run(run: Path, checkpoint: Checkpoint) -> ModelCheckpoint:
    """Encoder, and decoder of a pretraining, of one of a run's checkpoints."""
    config, resolved = read_config(run, TrainingConfig)
    if resolved is None:
        raise CheckpointError(f"{run} was stopped before it was prepared; it has no weights.")
    state = checkpoint.model()

    def part(name: str) -> dict[str, Tensor]:
        start = f"{name}."
        return {k.removeprefix(start): value for k, value in state.items() if k.startswith(start)}

    size, pixels = resolved.image_size, resolved.pixels
    encoder = build_encoder(config.encoder, image_size=size, channels=pixels.channels)
    pretraining = None
    if isinstance(config, PretrainConfig):
        pretraining = Pretraining(
            decoder=config.decoder,
            state=part("decoder"),
            mask_token=state.get("mask_token"),
            mask=config.mask,
            target=config.target,
            target_state=part("target"),
            sampler_state=part("sampler"),
        )
    try:
        encoder.load_state_dict(part("encoder"))
    except RuntimeError as error:
        raise CheckpointError(f"{checkpoint.folder} is of another model: {error}") from error
    return ModelCheckpoint(
        layout=f"simmim, step {checkpoint.step}",
        model=encoder.model,
        arguments=_own_arguments(encoder.arguments),
        image_size=encoder.image_size,
        patch=encoder.patch,
        pixels=pixels,
        encoder={name: value.detach() for name, value in encoder.timm_state().items()},
        pretraining=pretraining,
        own=True,
    )


def describe(found: ModelCheckpoint) -> list[tuple[str, str]]:
    """What a user should know of a checkpoint: kind, licence, notes, and what was left out."""
    size = f"{found.image_size[0]}×{found.image_size[1]} pixels, patches of {found.patch}"
    rows = [("weights", f"{found.layout}: {found.model}, {size}")]
    if not found.own:
        rows.append(("licence", found.licence or "of the weights: not known; ask their source"))
    rows += [("note", note) for note in found.notes]
    by_reason: dict[str, list[str]] = {}
    for name, why in found.left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        rows.append(("left out", f"{shown} ({why})"))
    return rows
