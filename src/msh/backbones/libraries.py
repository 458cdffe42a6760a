"""Build models of torchvision, timm and transformers by name, without their heads; know their inputs and weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msh.errors import invalid, one_of

CLASSIFIERS = ("fc", "classifier", "head", "heads")
"""Attributes that hold the head of torchvision's classifiers."""
PRETRAINED = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "use_pretrained_backbone")
CODE = ("cache_dir", "pretrained_cfg", "pretrained_cfg_overlay", "auto_map", "quantization_config", "scriptable")
REFUSED = dict.fromkeys(PRETRAINED, "left out: use backbone.weights") | dict.fromkeys(CODE, "left out")
"""Arguments that could read files or run other code, to what is allowed instead. Recipes in files have none of them."""
LABELS = ("id2label", "label2id", "architectures", "transformers_version")
"""Values in transformers' configs that only a head needs, or nothing."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Images:
    """The images that a model was trained on, as its library describes them.

    Attributes:
        shape: (channels, height, width).
        mean: of each channel, of values in [0, 1].
        std: of each channel.
        interpolation: "bilinear" or "bicubic", of resized images.
        is_fixed: the model computes no other size, unless its arguments name it.
    """

    shape: tuple[int, int, int]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bilinear"
    is_fixed: bool = False


@dataclass(frozen=True)
class Tokens:
    """The tokens that a model reads.

    Attributes:
        vocabulary: number of token ids.
        longest: most tokens per text; None: any number.
        tokenizer: of the library, as JSON; None: msh makes one of the tasks' texts.
        padding: id of the padding token.
    """

    vocabulary: int
    longest: int | None = None
    tokenizer: str | None = None
    padding: int = 0


Inputs = Images | Tokens | None
"""What a model reads; None: not known."""


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ValueError(f"backbone={extra} needs {package}: pip install 'msh[{extra}]'")


def _known(key: str, name: str, names: Iterable[str]) -> None:
    known = list(names)
    if name not in known:
        raise invalid(key, f"one of the {len(known)} names of the library", name, known)


def _checked(args: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse arguments that could read files or call other code, at any depth."""
    for key, value in args.items():
        if key in REFUSED:
            raise invalid(f"backbone.args.{key}", REFUSED[key], value)
        if "attn_implementation" in key and value not in ATTENTION:
            raise invalid(f"backbone.args.{key}", f"one of {', '.join(ATTENTION)}", value)
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Mapping):
                _checked(part)
    return dict(args)


@contextmanager
def _offline() -> Iterator[None]:
    """Keep Hugging Face's libraries off the network inside the context: some models download parts of themselves."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


# ---- torchvision


def torchvision_model(name: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a classifier of torchvision without its head, with random weights.

    Args:
        name: as in `torchvision.models.list_models()`.
        args: of its constructor.
    Raises:
        ValueError: there is no such classifier, or an argument is not allowed.
    """
    from torchvision import models

    _known("backbone.name", name, models.list_models(module=models))
    settings = _checked(args or {})
    if name in ("googlenet", "inception_v3"):  # their outputs in training, and an initialization that takes minutes
        settings = {"aux_logits": False, "init_weights": False} | settings
    model: nn.Module = models.get_model(name, weights=None, **settings)
    if name.startswith("squeezenet"):  # its head is a convolution before the mean over the positions
        model.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return model
    attribute = next(key for key in CLASSIFIERS if hasattr(model, key))
    head = getattr(model, attribute)
    last = [key for key, part in head.named_modules() if isinstance(part, nn.Linear)][-1]
    if last:  # what precedes the last layer makes the features
        head.set_submodule(last, nn.Identity())
    else:
        setattr(model, attribute, nn.Identity())
    return model


def _torchvision_inputs(name: str, args: Mapping[str, Any]) -> Images:
    from torchvision import models

    _known("backbone.name", name, models.list_models(module=models))
    size = args.get("image_size", args.get("input_size", 224))
    sides = (size, size) if isinstance(size, int) else tuple(size)
    transforms: Any = models.get_model_weights(name).DEFAULT.transforms()
    if not {"image_size", "input_size"} & args.keys():
        sides = (transforms.crop_size[0],) * 2
    fixed = name.startswith(("vit_", "maxvit"))
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return Images((3, *sides), mean, std, transforms.interpolation.value, fixed)


def _torchvision_weights(name: str, args: Mapping[str, Any]) -> dict[str, Tensor]:
    from torchvision import models

    weights: Any = models.get_model_weights(name).DEFAULT
    state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    return state


# ---- timm


def timm_model(name: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a model of timm without its head, with random weights.

    Args:
        name: as in `timm.list_models()`; it may name pretrained weights after a dot.
        args: of its constructor.
    Raises:
        ValueError: timm is missing, there is no such model, or an argument is not allowed.
    """
    _check_timm(name)
    import timm

    with _offline():
        model: nn.Module = timm.create_model(name.partition(".")[0], **{"num_classes": 0} | _checked(args or {}))
    return model


def _check_timm(name: str) -> None:
    _require("timm", "timm")
    import timm

    base, _, tag = name.partition(".")
    _known("backbone.name", base, timm.list_models())
    if tag:
        _known("backbone.name", name, timm.list_pretrained(f"{base}.*"))


def _timm_inputs(name: str, args: Mapping[str, Any]) -> Images:
    _check_timm(name)
    import timm

    config = timm.get_pretrained_cfg(name)
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = data["input_size"]
    if size := args.get("img_size"):
        height, width = (size, size) if isinstance(size, int) else size
    shape = (args.get("in_chans", channels), height, width)
    is_fixed = bool(config.fixed_input_size)
    return Images(shape, tuple(data["mean"]), tuple(data["std"]), data["interpolation"], is_fixed)


def _timm_weights(name: str, args: Mapping[str, Any]) -> dict[str, Tensor]:
    import timm

    model = timm.create_model(name, pretrained=True, **{"num_classes": 0} | _checked(args))
    return dict(model.state_dict())


# ---- transformers


def hf_model(config: Mapping[str, Any]) -> nn.Module:
    """Build a base model of transformers, or the encoder of an encoder and decoder, with random weights.

    Args:
        config: of the model, with its `model_type`.
    Raises:
        ValueError: transformers is missing, or the config is not allowed.
    """
    _require("transformers", "hf")
    from transformers import AutoConfig, AutoModel

    settings = _checked(config)
    kind = settings.pop("model_type", "")
    one_of("backbone.args.model_type", kind, _model_types())
    built = AutoConfig.for_model(kind, **settings)
    attention = settings.get("attn_implementation")
    with _offline():
        model = AutoModel.from_config(built, **({"attn_implementation": attention} if attention else {}))
    encoder: nn.Module = model.get_encoder() if built.is_encoder_decoder else model
    return encoder


def _model_types() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


def hf_config(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    """Read a model's config.

    Args:
        name: a type of model such as "bert", a local folder, or a model on the Hub.
        args: replace values in it.
    Raises:
        ValueError: transformers is missing, or there is no such model, or it cannot be downloaded.
    """
    _require("transformers", "hf")
    from transformers import AutoConfig

    types = _model_types()
    args = _checked(args)
    if name in types and not Path(name).is_dir():
        config = AutoConfig.for_model(name, **_special_tokens(AutoConfig.for_model(name), args))
    else:
        try:
            config = _from_cache(AutoConfig.from_pretrained, name, **args)
        except (OSError, ValueError) as error:
            bound = (
                "a folder with a config.json, a type of model such as bert, or a model on the Hugging Face Hub "
                f"({str(error).splitlines()[0]})"
            )
            raise invalid("backbone.name", bound, name, types) from error
    values: dict[str, Any] = config.to_diff_dict()
    return {key: value for key, value in values.items() if key not in (*REFUSED, *LABELS) and not key.startswith("_")}


def _special_tokens(usual: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the special tokens that a smaller vocabulary lacks: they belong to the tokenizer of the usual one."""
    size = args.get("vocab_size", math.inf)
    beyond = [key for key in SPECIAL if isinstance(token := getattr(usual, key, None), int) and token >= size]
    return {**dict.fromkeys(beyond), **args}


def _from_cache(read: Callable[..., Any], name: str, **settings: Any) -> Any:
    """Read a part of a model from its folder or the cache, and only if it is not there from the Hub."""
    settings = {"trust_remote_code": False, **settings}
    try:
        return read(name, local_files_only=True, **settings)
    except OSError:
        if Path(name).is_dir():
            raise
        return read(name, **settings)


def _hf_inputs(name: str, args: Mapping[str, Any]) -> Inputs:
    from transformers import AutoConfig

    settings = hf_config(name, args)
    kind = settings.pop("model_type")
    config: Any = AutoConfig.for_model(kind, **settings)
    if hasattr(config, "vocab_size") and not hasattr(config, "vision_config") and _main_input(config) not in NUMBERS:
        longest = getattr(config, "max_position_embeddings", None)
        tokenizer, padding = _tokenizer(name)
        if padding is None:
            padding = 0 if tokenizer is None else getattr(config, "pad_token_id", None) or 0
        return Tokens(config.vocab_size, longest, tokenizer, padding)
    if not hasattr(config, "num_channels"):
        return None
    size = getattr(config, "image_size", 224)
    sides = (size, size) if isinstance(size, int) else tuple(size)
    mean, std = _image_statistics(name, config.num_channels)
    return Images((config.num_channels, *sides), mean, std, "bilinear", hasattr(config, "image_size"))


NUMBERS = ("pixel_values", "input_values", "input_features", "past_values")
"""Names of the main input of models that read no tokens; such a model may have a vocabulary to answer with."""


def _main_input(config: Any) -> str:
    """Return the name of the first argument of a config's model."""
    from transformers import MODEL_MAPPING

    model: Any = MODEL_MAPPING[type(config)]
    return str((model[0] if isinstance(model, tuple) else model).main_input_name)


def _tokenizer(name: str) -> tuple[str | None, int | None]:
    """Read a model's tokenizer as JSON, with its padding id; (None, None) for a type of model, which has none."""
    if name in _model_types() and not Path(name).is_dir():
        return None, None
    from transformers import AutoTokenizer

    try:
        tokenizer = _from_cache(AutoTokenizer.from_pretrained, name)
        text = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError, ImportError, KeyError, TypeError):
        return None, None  # a folder with a model alone
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return text, padding


def _image_statistics(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read mean and deviation of a model's images from its preprocessor_config.json; those of transformers if none."""
    from transformers import ImageProcessingMixin

    if name not in _model_types() or Path(name).is_dir():
        try:
            settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
            if "image_mean" in settings:
                return tuple(settings["image_mean"]), tuple(settings["image_std"])
        except (OSError, ValueError):
            pass  # a folder with a model alone
    return (0.5,) * channels, (0.5,) * channels


def _hf_weights(name: str, args: Mapping[str, Any]) -> dict[str, Tensor]:
    from transformers import AutoModel

    if name in _model_types() and not Path(name).is_dir():
        raise invalid("backbone.name", "a folder or a model on the Hub with backbone.weights=default", name)
    model = _from_cache(AutoModel.from_pretrained, name, dtype=torch.float32, **_checked(args))
    return dict((model.get_encoder() if model.config.is_encoder_decoder else model).state_dict())


# ---- all libraries


@dataclass(frozen=True)
class Library:
    """A library of models.

    Attributes:
        recipe: from a name and arguments to the recipe of a model without head.
        inputs: from these to what the model reads.
        weights: from these to the library's own pretrained weights, from its cache or downloaded.
        size: its argument for the size of images.
        channels: its argument for their channels; None: they are fixed.
    """

    recipe: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    inputs: Callable[[str, Mapping[str, Any]], Inputs]
    weights: Callable[[str, Mapping[str, Any]], dict[str, Tensor]]
    size: str
    channels: str | None


def _recipe_by_name(function: str) -> Callable[[str, Mapping[str, Any]], dict[str, Any]]:
    return lambda name, args: {"_target_": f"{__name__}.{function}", "name": name, "args": dict(args)}


def _hf_recipe(name: str, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"_target_": f"{__name__}.hf_model", "config": hf_config(name, args)}


LIBRARIES = {
    "torchvision": Library(
        _recipe_by_name("torchvision_model"), _torchvision_inputs, _torchvision_weights, "image_size", None
    ),
    "timm": Library(_recipe_by_name("timm_model"), _timm_inputs, _timm_weights, "img_size", "in_chans"),
    "hf": Library(_hf_recipe, _hf_inputs, _hf_weights, "image_size", "num_channels"),
}
"""By the name of the option under `backbone`."""
