"""The networks that can be unlearned: what each is called on disk, what its configuration says, and what is refused instead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from diffusers import DDPMScheduler, DiTTransformer2DModel, ModelMixin, UNet2DConditionModel, UNet2DModel
from torch.nn import Parameter

from safemax.diffusion.condition import Labels, Prompts
from safemax.diffusion.networks.dit import OfficialDiT
from safemax.diffusion.networks.edm import EDMUNet
from safemax.errors import InputError

Config = Mapping[str, Any]


class Kind(ABC):
    """A kind of denoiser.

    Class attributes:
        network: its class.
        library: the module that a pipeline's index names it by; a pipeline of diffusers opens one of another library where
            that is imported already.
        part: its folder in a pipeline's folder.
        pipeline: the class that opens such a folder.
        limits: the largest value of each size in its configuration that is built.
        layers: parts of the names of the weights that a choice of them means (safemax.diffusion.weights); a choice that is
            missing is one that the network has no weights for.
    """

    network: ClassVar[type[ModelMixin]]
    library: ClassVar[str] = "diffusers"
    part: ClassVar[str]
    pipeline: ClassVar[str]
    limits: ClassVar[dict[str, int]]
    layers: ClassVar[dict[str, tuple[str, ...]]]

    @abstractmethod
    def refuse(self, config: Config) -> str:
        """Return why a network of this configuration cannot be unlearned by class, with what can; "" where it can."""

    @abstractmethod
    def labels(self, config: Config) -> int:
        """Return the rows of the label table, the null label's included; 0 where text takes its place."""

    def always_has_null(self) -> bool:
        """Whether the last row of the label table is the null label by the network's construction."""
        return False

    def divisor(self, config: Config) -> int:
        """Return what an image's side must be divisible by inside the network: 2 to the number of times that it halves it."""
        return 2 ** (len(config["block_out_channels"]) - 1)

    def prepare(self, denoiser: Any, schedule: DDPMScheduler) -> None:
        """Turn off what the network would draw by itself in training, and tell it the schedule where it needs one."""

    def label_tables(self, denoiser: Any) -> list[Parameter]:
        """Return the tables of label embeddings, one row a label."""
        return []


class LabelUNet(Kind):
    """diffusers' UNet2DModel with a table of labels."""

    network = UNet2DModel
    part = "unet"
    pipeline = "DDPMPipeline"
    limits: ClassVar = {"num_class_embeds": 100_000, "layers_per_block": 16}
    layers: ClassVar = {
        "attention": (".attentions.",),
        "label_embedding": ("class_embedding.",),
        "conditioning": ("class_embedding.", "time_emb_proj."),
    }

    def refuse(self, config: Config) -> str:
        kind = config.get("class_embed_type")
        if kind is not None:
            return (
                f"cannot be unlearned by class: class_embed_type = {kind} is not a table of labels; supported: "
                "class_embed_type = null with num_class_embeds"
            )
        if not config.get("num_class_embeds"):
            return "cannot be unlearned by class: its denoiser has no class embedding (num_class_embeds)"
        return ""

    def labels(self, config: Config) -> int:
        return int(config["num_class_embeds"] or 0)

    def label_tables(self, denoiser: Any) -> list[Parameter]:
        return [denoiser.class_embedding.weight]


class LabelDiT(Kind):
    """diffusers' DiT: a transformer on patches, with a table of labels in every block, each with a null label of its own.

    In training each of its tables would drop a tenth of the labels by itself, another tenth in each block: with 28 blocks
    hardly a row would keep its label. Labels are dropped by the loss here, once for all blocks, so `prepare` turns that off.
    """

    network = DiTTransformer2DModel
    part = "transformer"
    pipeline = "DiTPipeline"
    limits: ClassVar = {
        "num_embeds_ada_norm": 100_000, "num_layers": 128, "num_attention_heads": 128, "attention_head_dim": 1024,
        "patch_size": 64,
    }  # fmt: skip
    layers: ClassVar = {
        "attention": (".attn1.",),
        "label_embedding": (".class_embedder.",),
        "conditioning": (".class_embedder.", ".norm1.linear."),
    }

    def refuse(self, config: Config) -> str:
        norm = config.get("norm_type", "ada_norm_zero")
        if norm != "ada_norm_zero":
            return (
                f"cannot be unlearned by class: norm_type = {norm} takes no label; supported: ada_norm_zero, as in DiT"
            )
        if not config.get("num_embeds_ada_norm", 1000):
            return "cannot be unlearned by class: its denoiser has no label embedding (num_embeds_ada_norm)"
        return ""

    def labels(self, config: Config) -> int:
        return int(config["num_embeds_ada_norm"]) + 1

    def always_has_null(self) -> bool:
        return True

    def divisor(self, config: Config) -> int:
        """Return 1: positions are fixed, so that no side can be padded; `sample_size` fits by construction."""
        return 1

    def prepare(self, denoiser: Any, schedule: DDPMScheduler) -> None:
        for block in denoiser.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0

    def label_tables(self, denoiser: Any) -> list[Parameter]:
        blocks = denoiser.transformer_blocks
        return [block.norm1.emb.class_embedder.embedding_table.weight for block in blocks]


class OfficialLabelDiT(LabelDiT):
    """The same with the frequencies of DiT's own code, as its own checkpoints need them."""

    network = OfficialDiT
    library = OfficialDiT.__module__


class LabelEDM(LabelUNet):
    """EDM's network with a table of labels; it has its own preconditioning, and predicts eps."""

    network = EDMUNet
    library = EDMUNet.__module__
    limits: ClassVar = {"num_class_embeds": 100_000, "layers_per_block": 16, "model_channels": 4096}

    def prepare(self, denoiser: Any, schedule: DDPMScheduler) -> None:
        if schedule.config.prediction_type != "epsilon":
            raise InputError(
                f"prediction_type = {schedule.config.prediction_type} is not allowed with EDM's network, which predicts epsilon"
            )
        denoiser.follow(schedule.alphas_cumprod)


class TextUNet(Kind):
    """diffusers' UNet2DConditionModel, conditioned on a text by cross-attention alone, as in Stable Diffusion 1 and 2."""

    network = UNet2DConditionModel
    part = "unet"
    pipeline = "StableDiffusionPipeline"
    limits: ClassVar = {}
    layers: ClassVar = {
        "attention": (".attn1.", ".attn2."),
        "cross_attention": (".attn2.",),
        "conditioning": (".attn2.",),
    }
    _FURTHER: ClassVar = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type", "num_class_embeds")

    def refuse(self, config: Config) -> str:
        nearest = "the nearest model that can be unlearned is Stable Diffusion 1 or 2 without further inputs"
        for key in self._FURTHER:
            if config.get(key):
                return f"needs more than a prompt ({key} = {config[key]}), as Stable Diffusion XL does; {nearest}"
        if config.get("in_channels") != config.get("out_channels"):
            channels = f"{config.get('in_channels')} channels in and {config.get('out_channels')} out"
            return f"has {channels}: it completes given images, as an inpainting model does; {nearest}"
        return ""

    def labels(self, config: Config) -> int:
        return 0


KINDS: tuple[Kind, ...] = (LabelUNet(), LabelEDM(), OfficialLabelDiT(), LabelDiT(), TextUNet())
# DiT's first release is called by the name that its class had then.
_BY_NAME = {kind.network.__name__: kind for kind in KINDS} | {"Transformer2DModel": LabelDiT()}


def of(denoiser: Any) -> Kind:
    """Return the kind of a network; InputError for another class."""
    for kind in KINDS:
        if isinstance(denoiser, kind.network):
            return kind
    raise InputError(_unknown(type(denoiser).__name__))


def named(source: str, config: Config) -> Kind:
    """Return the kind of the network that a config.json describes.

    Args:
        source: the model, for messages.
        config: the content of the file.

    Raises:
        InputError: it cannot be unlearned, with the reason and the nearest that can.
    """
    kind = _BY_NAME.get(str(config.get("_class_name")))
    if kind is None:
        raise InputError(f"{source} {_unknown(str(config.get('_class_name')))}")
    if reason := kind.refuse(config):
        raise InputError(f"{source} {reason}")
    return kind


def labels(denoiser: Any, condition: Labels | Prompts) -> int:
    """Return how many labels a network is told by: the rows of its table, or those of them that are used."""
    if isinstance(condition, Labels) and condition.rows is not None:
        return len(condition.rows)
    return of(denoiser).labels(denoiser.config)


def has_null(denoiser: Any, condition: Labels | Prompts, num_classes: int) -> bool:
    """Return whether there is a null label beside so many classes."""
    return isinstance(condition, Prompts) or labels(denoiser, condition) == num_classes + 1


def validate(denoiser: Any, class_names: tuple[str, ...], condition: Labels | Prompts) -> None:
    """Raise InputError where class names and a network do not make a model that can be unlearned by class."""
    if duplicates := sorted({name for name in class_names if class_names.count(name) > 1}):
        raise InputError(
            f"duplicate class names {', '.join(map(repr, duplicates))}; each label needs a name of its own"
        )
    _validate_labels(denoiser, class_names, condition)
    config = denoiser.config
    if (config.out_channels or config.in_channels) not in (config.in_channels, 2 * config.in_channels):
        raise InputError(
            f"a denoiser that takes {config.in_channels} channels and predicts {config.out_channels} is not supported; it must "
            "predict as many as it takes (eps) or twice as many (eps and a variance)"
        )
    if not isinstance(config.sample_size, int):
        raise InputError(f"sample_size {config.sample_size} is not supported; it must be a single side length")


def _validate_labels(denoiser: Any, class_names: tuple[str, ...], condition: Labels | Prompts) -> None:
    count, rows = len(class_names), labels(denoiser, condition)
    if isinstance(condition, Prompts):
        if condition.names != class_names:
            raise InputError(f"the class names {', '.join(class_names)} are not those of the prompts")
    elif not rows:
        raise InputError("the denoiser has no class embedding (num_class_embeds), so no class of it can be unlearned")
    elif rows != count + 1 and (rows != count or of(denoiser).always_has_null()):
        raise InputError(
            f"{count} class names do not fit {rows} label embeddings: there must be one for each name, or one more, for "
            "the null label"
        )


def validate_size(source: str, config: Config, kind: Kind, steps: Any) -> None:
    """Raise InputError for a network or schedule that would take hours or all memory to build, such as one of 10^7 layers.

    Args:
        source: the model, for messages.
        config: of the network.
        kind: of the network.
        steps: of the schedule.
    """
    allowed = {"sample_size": 1024, "in_channels": 64, "out_channels": 128} | kind.limits
    values = [(name, config[name], most) for name, most in allowed.items() if config.get(name) is not None]
    if "block_out_channels" in config or kind.part == "unet":
        values += _channels(config.get("block_out_channels", [224]))
    values.append(("num_train_timesteps", steps, 100_000))
    for name, value, most in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise InputError(
                f"{source} cannot be built: {name} = {str(value)[:60]} is not allowed; it is from 1 to {most}"
            )


def _channels(channels: Sequence[Any] | Any) -> list[tuple[str, Any, int]]:
    listed = isinstance(channels, list)
    count = ("number of block_out_channels", len(channels) if listed else None, 12)
    return [count, *(("block_out_channels", each, 4096) for each in channels)] if listed else [count]


def _unknown(name: str) -> str:
    return (
        f"holds a {name}; only class-conditional UNet2DModel, DiTTransformer2DModel and, with prompts, UNet2DConditionModel "
        "(Stable Diffusion 1 and 2) can be unlearned"
    )
