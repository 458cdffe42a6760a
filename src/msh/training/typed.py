"""Convert composed configs to typed objects, and report all problems of a config at once.

A config class is a pydantic dataclass: its types and bounds stand in its fields. `hydra_schema` derives from it the
plain dataclass that Hydra's ConfigStore takes, so that Hydra knows the keys, their defaults and their simple types.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING
from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from msh.errors import ProblemsError, requirement, suggestion

T = TypeVar("T")
MEMBER = re.compile(r"<.*>|list\[.*|dict\[.*|literal\[.*|\[key\]")
"""Form of the names that pydantic, or a discriminator, gives to the members of a union; they are in no key."""
NOUNS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "dict": "a mapping",
    "list": "a list",
    "dataclass": "a mapping",
}
"""Start of pydantic's error types to the kind of value that a setting must be."""
SIMPLE = (int, float, bool, str)


class ConfigError(ProblemsError):
    """One or more settings are invalid."""


def bounded(bound: str, is_allowed: Callable[[Any], bool]) -> AfterValidator:
    """Restrict the type of a field: `Annotated[float, bounded("> 0", lambda value: value > 0)]`.

    Args:
        bound: as in `msh.errors.requirement`.
        is_allowed: tests a value of the type.
    """

    def check(value: T) -> T:
        if not is_allowed(value):
            raise PydanticCustomError("bound", "{bound}", {"bound": bound})
        return value

    return AfterValidator(check)


def named(names: Iterable[str]) -> AfterValidator:
    """Restrict a text to names that are known at run time; `Literal` does so for fixed ones."""
    allowed = list(names)

    def check(value: str) -> str:
        if value not in allowed:
            raise PydanticCustomError("name", "{allowed}", {"allowed": allowed})
        return value

    return AfterValidator(check)


def convert(kind: type[T], values: Mapping[str, Any], extra: Iterable[str] = ()) -> T:
    """Make a config object from plain values.

    Args:
        kind: a config class.
        values: plain dicts and lists; keys that are missing get their defaults.
        extra: names, besides the class's fields, to suggest for a misspelt key at the top.
    Raises:
        ConfigError: naming every key that is unknown or has an invalid value.
    """
    unknown = list(_unknown(kind, values, "", extra))
    try:
        made: T = TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise ConfigError([*unknown, *_problems(error)]) from None
    if unknown:
        raise ConfigError(unknown)
    return made


def _unknown(hint: Any, value: Any, key: str, extra: Iterable[str] = ()) -> Iterator[str]:
    """Yield a sentence for each key, at or below `key`, that the config's classes do not have."""
    origin, parts = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        hints = _hints(hint)  # type: ignore[arg-type]
        for name, part in value.items():
            if name in hints:
                yield from _unknown(hints[name], part, f"{key}.{name}" if key else str(name))
            else:
                yield (
                    f"there is no setting {key}{'.' if key else ''}{name}; {key or 'the config'} has {', '.join(hints)}"
                    f"{suggestion(str(name), [*hints, *extra])}"
                )
    elif origin is list and isinstance(value, list):
        for number, part in enumerate(value):
            yield from _unknown(parts[0], part, f"{key}[{number}]")
    elif origin is dict and isinstance(value, Mapping):
        for name, part in value.items():
            yield from _unknown(parts[1], part, f"{key}.{name}")
    elif origin in (Union, types.UnionType):
        for part in parts:
            yield from _unknown(part, value, key)


def open_mapping(kind: type[Any], key: str) -> str | None:
    """Find the mapping above a dotted key whose keys the config's classes do not list.

    Args:
        kind: a config class.
        key: such as "tasks.wine.source.decimal".
    Returns:
        The mapping's key, such as "tasks.wine.source"; None: the classes list all keys.
    """
    hint: Any = kind
    parts = key.split(".")
    for number, part in enumerate(parts):
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        inner = next((get_args(member)[1] for member in members if get_origin(member) is dict), None)
        classes = [member for member in members if dataclasses.is_dataclass(member)]
        is_name = inner is not None and not dataclasses.is_dataclass(inner) and number + 1 == len(parts)
        if Any in (*members, inner) or is_name:
            return ".".join(parts[:number])
        hint = inner or (_hints(classes[0]).get(part) if classes else None)  # type: ignore[arg-type]
    return None


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _problems(error: ValidationError) -> list[str]:
    """Write a sentence for each key with a problem; a union's members share one."""
    by_key: dict[str, tuple[list[str], list[str], Any]] = {}
    sentences: list[str] = []
    for problem in error.errors(include_url=False):
        loc, kind, context = problem["loc"], problem["type"], problem.get("ctx", {})
        if kind == "value_error":
            sentences += getattr(context["error"], "problems", [str(context["error"])])
            continue
        if kind == "missing":
            sentences.append(f"{_dotted(loc)} is missing: set it")
            continue
        names: list[str] = context.get("allowed") or re.findall(r"'([^']*)'", str(context.get("expected", "")))
        noun = NOUNS.get(kind.partition("_")[0], problem["msg"])
        bound = context.get("bound") or (f"one of {', '.join(names)}" if names else noun)
        bounds, allowed, _ = by_key.setdefault(_dotted(loc), ([], [], problem["input"]))
        if bound not in bounds:
            bounds.append(bound)
        allowed += names
    sentences += [
        requirement(key, " or ".join(bounds), value) + suggestion(str(value), names)
        for key, (bounds, names, value) in by_key.items()
    ]
    return sentences


def _dotted(loc: tuple[int | str, ...]) -> str:
    """Write a location in a config as users do: curriculum[1].max_epochs."""
    key = ""
    if loc and loc[-1] in ("int", "float", "str", "bool"):
        loc = loc[:-1]
    for part in loc:
        if isinstance(part, int):
            key += f"[{part}]"
        elif not MEMBER.fullmatch(part):
            key += f".{part}" if key else part
    return key


def hydra_schema(kind: type[Any]) -> type[Any]:
    """Derive from a config class the dataclass that Hydra's ConfigStore takes.

    OmegaConf knows numbers, truth values, texts, None, dataclasses, and mappings of texts to these; whatever else a
    field may be is `Any` to it, and checked by `convert`.
    """
    hints = get_type_hints(kind, include_extras=True)
    made: list[Any] = []
    for part in dataclasses.fields(kind):
        if not part.init:
            continue
        hint = _for_omegaconf(hints[part.name])
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            default = dataclasses.field(default_factory=hint)
        elif part.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=part.default_factory)
        else:
            default = dataclasses.field(default=MISSING if part.default is dataclasses.MISSING else part.default)
        made.append((part.name, hint, default))
    schema = dataclasses.make_dataclass(kind.__name__, made)
    schema.__module__, schema.__qualname__ = kind.__module__, f"schema_of_{kind.__name__}"
    setattr(sys.modules[kind.__module__], schema.__qualname__, schema)  # launchers pickle it by its name
    return schema


def _for_omegaconf(hint: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return hydra_schema(hint)  # type: ignore[arg-type]
    if hint in SIMPLE:
        return hint
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated and any(isinstance(part, BeforeValidator) for part in parts):
        return Any  # more forms are allowed than the type says
    if origin is Annotated:
        return _for_omegaconf(parts[0])
    if origin is Literal:
        return str if all(isinstance(part, str) for part in parts) else Any
    if origin is dict:
        return dict[str, _for_omegaconf(parts[1])]  # type: ignore[misc]
    if origin is list:
        return list[_for_omegaconf(parts[0])]  # type: ignore[misc]
    if origin in (Union, types.UnionType) and len(parts) == 2 and type(None) in parts:
        inner = _for_omegaconf(next(part for part in parts if part is not type(None)))
        return inner | None if inner in SIMPLE else Any
    return Any
