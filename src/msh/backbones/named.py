"""Resolve a config's backbone, named in a library or by the user's code, to its recipe, inputs and weights."""

from __future__ import annotations

import inspect
import json
import logging
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from msh.backbones.libraries import LIBRARIES, Images, Inputs, Tokens
from msh.errors import Problems, described, invalid, one_of, suggestion

log = logging.getLogger(__name__)

GIVEN: dict[str, Callable[..., nn.Module]] = {}
"""Name to constructor of modules that were passed to `msh.train`."""
BY_CALLER = "given"
"""The name of the module that `msh.train` was passed, in configs and recipes."""
Recipe = dict[str, Any]
"""See `msh.recipes`, which builds it."""
ADAPTED = "msh.backbones.Adapted"
DEFAULT = "default"
WRAPPERS = r"^(?:module|model|backbone|encoder|base_model|_orig_mod)\."
"""Prefixes of names in files of weights, which training loops and heads add."""


@dataclass(frozen=True)
class Named:
    """A backbone named in a library (`library` and `name`) or by its constructor (`target`).

    Attributes:
        args: of its constructor; a model's config values for transformers.
        input_shape: of one example; None: the model's own, or the first task's.
        pool: see `Adapted`.
        weights: None: random; "default": the library's; or a file.
        vocabulary: number of token ids, if a `target` reads tokens.
        padding: id of the padding token, if a `target` reads tokens; of a type of model: the tasks' when None.
    """

    library: str | None = None
    name: str | None = None
    target: str | None = None
    args: Mapping[str, Any] | None = None
    input_shape: Sequence[int] | None = None
    pool: str | None = None
    weights: str | None = None
    vocabulary: int | None = None
    padding: int | None = None

    def inputs(self) -> Inputs:
        """Find what the model reads, as its library says."""
        if self.library is None:
            return None if self.vocabulary is None else Tokens(self.vocabulary, padding=self.padding or 0)
        return _inputs_of(self.library, str(self.name), json.dumps(dict(self.args or {}), sort_keys=True))

    def shape(self, inputs: Inputs, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Choose the shape of one example.

        Args:
            inputs: of the model.
            shapes: of the tasks' examples, in order.
        """
        if self.input_shape is not None:
            return tuple(self.input_shape)
        if not isinstance(inputs, Images):
            return shapes[0]
        images = [shape for shape in shapes if len(shape) == 3]
        if self.weights is not None or not images:
            return inputs.shape
        return (inputs.shape[0], *images[0][1:])

    def recipe(self, shape: tuple[int, ...], inputs: Inputs) -> Recipe:
        """Write the recipe of the backbone, `Adapted`, for inputs of a shape."""
        if self.library is None:
            model = self._own_model(shape)
        else:
            args = dict(self.args or {})
            if isinstance(inputs, Images):
                args |= self._image_args(LIBRARIES[self.library], inputs, shape)
            if isinstance(inputs, Tokens) and inputs.tokenizer is None and inputs.padding:
                args = {"pad_token_id": inputs.padding, **args}  # embeddings and positions of some models leave it out
            model = LIBRARIES[self.library].recipe(str(self.name), args)
        recipe: Recipe = {"_target_": ADAPTED, "model": model, "input_shape": list(shape)}
        if self.pool is not None:
            recipe["pool"] = self.pool
        if isinstance(inputs, Tokens):
            if inputs.longest is not None and shape[0] > inputs.longest:
                raise invalid("source.length", f"<= {inputs.longest}, the most tokens of {self.name}", shape[0])
            recipe |= {"vocabulary": inputs.vocabulary, "padding": inputs.padding}
        return recipe

    def _own_model(self, shape: tuple[int, ...]) -> Recipe:
        """Write the recipe of the user's module: `input_shape` is among its arguments if it takes one."""
        target, args = str(self.target), dict(self.args or {})
        if target in GIVEN:
            return {"_target_": target, **args}
        try:
            constructor = pkgutil.resolve_name(target)
        except Exception as error:  # importing a module may raise any type
            bound = f"a class or function that can be imported ({described(error)})"
            raise invalid("backbone.target", bound, target) from error
        try:
            parameters = inspect.signature(constructor).parameters
        except (TypeError, ValueError):
            parameters = {}  # type: ignore[assignment]
        if "input_shape" in parameters:
            args = {"input_shape": list(shape)} | args
        return {"_target_": target, **args}

    def _image_args(self, library: Any, inputs: Images, shape: tuple[int, ...]) -> dict[str, Any]:
        """Write the arguments that make a model read images of another shape than its own."""
        args: dict[str, Any] = {}
        if len(shape) != 3:
            raise invalid("backbone.input_shape", "[channels, height, width]", list(shape))
        if shape[0] != inputs.shape[0]:
            if library.channels is None or self.weights is not None:
                raise invalid("backbone.input_shape", f"[{inputs.shape[0]}, height, width]", list(shape))
            args[library.channels] = shape[0]
        if shape[1:] != inputs.shape[1:] and inputs.is_fixed:
            args[library.size] = shape[1] if shape[1] == shape[2] else list(shape[1:])
        return args

    def load(self, model: nn.Module) -> None:
        """Load pretrained weights into a model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, lacks a parameter of the model, or weights cannot be downloaded.
        """
        if self.weights is None:
            return
        state, origin = self._state(model), f"backbone.weights={self.weights}"
        own = model.state_dict()
        found = {name: state[name] for name in own if name in state and state[name].shape == own[name].shape}
        if lacking := [name for name in dict(model.named_parameters()) if name not in found]:
            shapes = ", ".join(
                f"{name} {list(own[name].shape)}" + (f" (there {list(state[name].shape)})" if name in state else "")
                for name in lacking[:4]
            )
            more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
            raise ValueError(f"{origin} has no {shapes}{more}: the weights are of another model")
        model.load_state_dict(found, strict=False)
        others = [name for name in state if name not in own]
        log.info("loaded %d tensors from %s%s", len(found), origin, _unused(others))

    def _state(self, model: nn.Module) -> dict[str, Tensor]:
        if self.weights != DEFAULT:
            return _matching(read_weights(Path(str(self.weights))), model)
        if self.library is None:
            raise invalid("backbone.weights", "a file, as backbone=module knows no others", self.weights)
        try:
            state = LIBRARIES[self.library].weights(str(self.name), self.args or {})
        except Exception as error:  # each library raises its own types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"backbone.weights=default: {self.name}'s weights are neither in the cache of {self.library} nor can "
                f"they be downloaded ({type(error).__name__}: {reason}); on a machine with internet, download them "
                "once, or pass a local file: backbone.weights=FILE"
            ) from error
        return _matching(state, model)


@cache
def _inputs_of(library: str, name: str, args: str) -> Inputs:
    return LIBRARIES[library].inputs(name, json.loads(args))


def named(settings: Mapping[str, Any]) -> Named | None:
    """Read a config's backbone; None: its `_target_` is a backbone as it is.

    Raises:
        ValueError: naming every setting that is unknown, missing or invalid.
    """
    target = str(settings.get("_target_"))
    if target not in (ADAPTED, "msh.backbones.adapted.Adapted"):
        return _without_input_shape(target, settings)
    if "model" in settings:
        return None
    values = {key: value for key, value in settings.items() if key != "_target_"}
    with Problems() as problems:
        for key in values.keys() - Named.__dataclass_fields__.keys():
            problems.add(_unknown_setting(key, values))
        if values.get("library") is None and values.get("target") is None:
            problems.add("backbone.target is missing: name the class, as in backbone.target=my_package.Net")
        if values.get("library") is not None:
            problems.check(one_of, "backbone.library", values["library"], LIBRARIES)
            if values.get("name") is None:
                problems.add("backbone.name is missing: name the model, as in backbone.name=resnet18")
        if not isinstance(values.get("args") or {}, Mapping):
            problems.add(invalid("backbone.args", "a mapping", values["args"]))
    return Named(**values)


def _unknown_setting(key: str, values: Mapping[str, Any]) -> str:
    """Say that the backbone has no such setting, and which one may be meant: perhaps an argument of its class."""
    own = arguments_of(str(values.get("target"))) or set()
    names = list(Named.__dataclass_fields__)
    meant = "; did you mean 'backbone.args." + key + "'?" if key in own else suggestion(key, names, similarity=0.75)
    return f"there is no setting backbone.{key}; backbone has {', '.join(names)}{meant}"


def arguments_of(target: str) -> set[str] | None:
    """Name the arguments that a constructor takes; None: any, or unknown."""
    try:
        parameters = inspect.signature(pkgutil.resolve_name(target)).parameters.values()
    except Exception:  # what is wrong with it is said where it is called
        return None
    return None if any(p.kind == p.VAR_KEYWORD for p in parameters) else {p.name for p in parameters}


def _without_input_shape(target: str, settings: Mapping[str, Any]) -> Named | None:
    """Read a `_target_` that takes no `input_shape`, as `backbone=module` would; None: it takes one."""
    taken = arguments_of(target)
    if taken is None or "input_shape" in taken:
        return None
    ours = ("input_shape", "pool", "weights", "vocabulary", "padding")
    args = {key: value for key, value in settings.items() if key != "_target_" and (key not in ours or key in taken)}
    values = {key: value for key, value in settings.items() if key in ours and key not in taken}
    return Named(target=target, args=args, **values)


def _unused(names: Sequence[str]) -> str:
    if not names:
        return ""
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"; the model has no {some}"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file of weights: safetensors, or torch's format without any code in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no weights, or parts of a network of msh, or could run code.
    """
    if path.is_dir():
        names = ("model.safetensors", "pytorch_model.bin", "network.safetensors")
        found = [path / name for name in names if (path / name).is_file()]
        path = found[0] if found else path
    if not path.is_file():
        raise FileNotFoundError(f"backbone.weights = {path}: there is no such file")
    is_network = False
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                is_network = str((file.metadata() or {}).get("format")).startswith("msh")
                content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"backbone.weights = {path} cannot be read without running code: {reason}") from error
    if is_network:
        raise ValueError(
            f"backbone.weights = {path} holds msh's tasks, not the weights of one model: network={path} adds tasks to "
            "it; docs/backbones.md says how to save the weights of a task's backbone"
        )
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)} if content else {}
    if not state:
        raise ValueError(f"backbone.weights = {path} holds no tensors by name")
    return state


def _matching(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Strip prefixes from names, one after the other, as long as that lets more of them match the model's."""
    own, best = set(model.state_dict()), dict(state)
    shorter = dict(best)
    while any(re.match(r"[^.]+\.", name) for name in shorter):
        shorter = {re.sub(WRAPPERS, "", name): value for name, value in shorter.items()}
        if len(own & shorter.keys()) <= len(own & best.keys()):
            break
        best = dict(shorter)
    prefixes = {name.partition(".")[0] for name in best} if not own & best.keys() else set()
    for prefix in prefixes:  # such as "bert.", of a model that was saved with its head
        inner = {name.removeprefix(f"{prefix}."): value for name, value in best.items() if name.startswith(prefix)}
        if own & inner.keys():
            return inner
    return best
