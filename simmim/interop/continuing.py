"""Pretraining that goes on from weights that are already good."""

from dataclasses import dataclass, field, replace

from simmim.config.encoder import EncoderConfig
from simmim.config.kinds import typed
from simmim.config.optim import OptimConfig
from simmim.config.recipes import RECIPES
from simmim.config.resolved import PixelFormat
from simmim.config.run import PretrainConfig
from simmim.errors import ConfigError
from simmim.interop.checkpoint import ModelCheckpoint, Pretraining
from simmim.interop.load import load_mask_token, load_strictly
from simmim.interop.open import describe, open_source
from simmim.interop.resize import resize
from simmim.models.decoders import Transformer
from simmim.models.mim import MaskedImageModel


@dataclass
class Beginning:
    """A checkpoint, fitted to a run's images.

    Attributes:
        found: The checkpoint.
        config: The run's config, with the checkpoint's encoder in it.
        rows: What a user should know, name and text.
        why_rate: The reason for the rate, where it is not the user's.
    """

    found: ModelCheckpoint
    config: PretrainConfig
    rows: list[tuple[str, str]] = field(default_factory=list)
    why_rate: str | None = None

    @property
    def licence(self) -> str:
        """That of the weights, which all that is made of them inherit."""
        return self.found.licence or "not known: ask the source of the weights it started from"

    def apply(self, model: MaskedImageModel) -> None:
        """Give a model the weights: the encoder's, and the decoder's where it is the same.

        Raises:
            CheckpointError: The encoder's do not fit.
        """
        model.encoder.load_timm_state(dict(self.found.encoder))
        rest, kept = self.found.pretraining, "goes on with the checkpoint's"
        if rest is not None and typed(rest.target) != typed(self.config.target):
            head = {k: v for k, v in model.decoder.state_dict().items() if k.startswith("head.")}
            rest = replace(rest, state={**rest.state, **head})
            kept = f"its head is new, as the checkpoint's predicts {typed(rest.target)}"
        difference = _difference(model, rest)
        if not any(name == "decoder" for name, _ in self.rows):
            self.rows.append(("decoder", difference or kept))
            self.rows += [(name, "new: only a resume keeps its head") for name in model.extras]
        if difference is None and rest is not None:
            load_strictly(model.decoder, rest.state, "decoder")
            load_mask_token(model, rest.mask_token)


def begin(config: PretrainConfig, pixels: PixelFormat) -> Beginning:
    """Open the checkpoint that a run starts from, and fit it to the run's images.

    Args:
        config: What the user asked for; ``init_from`` names the checkpoint. Where it says no image
            or patch size, the checkpoint's is kept.
        pixels: The images' channels and values. The checkpoint's mean and deviation are kept where
            it has as many channels, since its weights expect them.

    Raises:
        CheckpointError: See ``open_source``.
        ConfigError: The flags name another encoder, or sizes that do not fit.
    """
    assert config.init_from is not None
    found = open_source(config.init_from, whole=True)
    _check_flags(config, found)
    rows = describe(found)
    encoder = config.encoder
    if pixels.channels == found.pixels.channels:
        pixels = replace(pixels, mean=found.pixels.mean, std=found.pixels.std)
    patch = encoder.patch_size or found.patch
    fitted, changes = resize(found, encoder.image_size or found.image_size, patch, pixels)
    position = encoder.position
    if position == "none" and "pos_embed" in found.encoder:
        position = "trained"
    encoder = EncoderConfig(
        model=found.model,
        image_size=fitted.image_size,
        patch_size=patch,
        channels=encoder.channels,
        position=position,
        init="timm",
        drop_path=encoder.drop_path,
        arguments=dict(found.arguments),
    )
    config = replace(config, encoder=encoder)
    why_rate = None
    if config.optim.lr == RECIPES[config.recipe]().optim.lr:
        rate = config.optim.base(fitted.encoder["norm.weight"].shape[0]) * OptimConfig.CONTINUED
        config = replace(config, optim=replace(config.optim, lr=rate))
        why_rate = (
            f"{OptimConfig.CONTINUED:g} of that for random weights, as these are good already"
        )
    return Beginning(fitted, config, rows + changes, why_rate)


def _check_flags(config: PretrainConfig, found: ModelCheckpoint) -> None:
    usual = RECIPES[config.recipe]().encoder
    asked = config.encoder
    if asked.model not in (usual.model, found.model):
        raise ConfigError(
            f"--model {asked.model} contradicts --from {config.init_from}, which is a "
            f"{found.model}. Leave --model out."
        )
    if asked.arguments and asked.arguments not in (usual.arguments, found.arguments):
        raise ConfigError(
            f"--encoder.arguments cannot be given with --from: the encoder is that of "
            f"{config.init_from}, {found.model} with {found.arguments}."
        )


def _difference(model: MaskedImageModel, rest: Pretraining | None) -> str | None:
    """Why the checkpoint's decoder cannot go on in ``model``; None: it can."""
    decoder = model.decoder
    if rest is None:
        return "new: the checkpoint holds none that fits"
    if rest.position is not None:
        return "new: the checkpoint's has other positions than the fixed sine-cosine"
    own = {name: value.shape for name, value in decoder.state_dict().items()}
    if own != {name: value.shape for name, value in rest.state.items()}:
        return "new: the checkpoint's is of another kind or size than the recipe's"
    if isinstance(decoder, Transformer):
        heads = getattr(rest.decoder, "heads", None) or max(1, decoder.embed.out_features // 32)
        if decoder.heads != heads:
            return f"new: the checkpoint's has {heads} heads; --decoder.heads {heads} keeps it"
    if (model.mask_token is None) != (rest.mask_token is None):
        return "new: the checkpoint has no mask token in its encoder"
    return None
