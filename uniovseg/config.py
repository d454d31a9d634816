"""Configuration: frozen pydantic models, YAML files, dotted overrides, and errors that fit on one line.

A configuration class sits beside the class it configures and derives from `Config`. A run's configuration is a tree of them,
read from YAML and changed by overrides such as ``optim.lr=3e-4``; a command line, a Tune trial and a resume all go through
`load`. A sub-tree may be given by the name of a preset (``model: shapes``, or ``model: {preset: shapes, decoder_layers: 3}``);
what is dumped is always the complete tree, so that dumping and reading back gives an equal configuration.
"""

import argparse
import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from uniovseg.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, defaults validated.

    `presets` maps a preset's name to the values that differ from the defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or "preset" not in value:
            return value
        values = {key: item for key, item in value.items() if key != "preset"}
        name = value["preset"]
        if name not in cls.presets:
            raise ValueError(f"no preset of this name; allowed: {', '.join(cls.presets) or 'none here'}{nearest(str(name), cls.presets)}")
        return merge(cls.presets[name], values)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """The preset `name` with top-level fields overridden. Raises pydantic's ValidationError for an unknown name."""
        return cls.model_validate({"preset": name, **overrides})


ConfigT = TypeVar("ConfigT", bound=Config)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mappings merged key by key. A string under a mapping is a preset's name and is kept as its base."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, str):
            old = {"preset": old}
        merged[key] = merge(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return merged


def nearest(name: str, candidates: Any) -> str:
    """The tail `` (did you mean 'x'?)`` for the candidate most like `name`, or nothing when none is near."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn ``["optim.lr=3e-4", "data.size=128"]`` into a nested mapping. Values are read as YAML (and 3e-4 as a number).

    Raises:
        ConfigError: an override without ``=`` or with an empty key.
    """
    tree: dict[str, Any] = {}
    for text in overrides:
        path, separator, raw = text.partition("=")
        if not separator or not all(path.split(".")):
            raise ConfigError("an override is not of the form key.key=value", seen=text, allowed="for example optim.lr=3e-4")
        value: Any = _parse_value(text, raw)
        for key in reversed(path.split(".")):
            value = {key: value}
        tree = merge(tree, value)
    return tree


def _parse_value(text: str, raw: str) -> Any:
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise ConfigError("an override's value is not YAML", seen=text, allowed="a number, a word, true, null, [list], {key: value}") from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 3e-4 as text
        except ValueError:
            return value
    return value


def load(config_type: type[ConfigT], path: str | Path | None = None, overrides: Sequence[str] = (), ignore: frozenset[str] = frozenset()) -> ConfigT:
    """Read a configuration from a YAML file and dotted overrides.

    Args:
        config_type: the class of the whole tree.
        path: the YAML file; None starts from the defaults.
        overrides: ``key.key=value`` texts, applied in order over the file.
        ignore: top-level keys of the file that another reader of it uses.

    Raises:
        ConfigError: the file cannot be read, or a key or value is wrong. The message is one line: the key, what was seen, what is
            allowed, and the nearest right name for a wrong key.
    """
    values: Any = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise ConfigError("the configuration file cannot be read", seen=path, allowed="a YAML file", fix=str(error.strerror)) from error
        except yaml.YAMLError as error:
            raise ConfigError("the configuration file is not YAML", seen=path, fix=" ".join(str(error).split())) from error
        if not isinstance(values, dict):
            raise ConfigError("the configuration file is not a mapping", seen=type(values).__name__, allowed="key: value lines", fix=str(path))
    own = {key: value for key, value in values.items() if key not in ignore}
    return validate(config_type, merge(own, parse_overrides(overrides)))


def validate(config_type: type[ConfigT], values: dict[str, Any]) -> ConfigT:
    """Validate a mapping as `config_type`; a wrong key or value raises ConfigError with one readable line per problem, joined by `` | ``."""
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        problems = [_problem(config_type, item) for item in error.errors()]
        raise ConfigError(" | ".join(problems)) from None


LONGEST_MAPPING = 100
"""Characters of a mapping that an error repeats; a longer one, such as a whole configuration, hides what is wrong with it."""


def _problem(config_type: type[Config], item: Any) -> str:
    parts, owner, field = _walk(config_type, item["loc"])
    key, seen = ".".join(parts) or "configuration", item["input"]
    if item["type"] == "extra_forbidden":
        names = sorted(owner.model_fields)
        near = nearest(parts[-1], names) or nearest(key, [field.key for field in fields(config_type)])
        return f"unknown key {key!r}; seen: {seen!r}; allowed here: {', '.join(names)}{near}"
    if item["type"] in ("union_tag_invalid", "union_tag_not_found") and field is not None:
        names = [kind.model_fields["name"].default for kind in config_types(field.annotation)]
        if "name" not in seen:
            return f"{key}.name is missing; it has no default; allowed: {', '.join(names)}"
        return f"{key}.name: no such name; seen: {seen['name']!r}; allowed: {', '.join(names)}{nearest(str(seen['name']), names)}"
    if item["type"] == "missing":
        return f"{key} is missing; it has no default" + (f"; allowed: {_allowed(field)}" if field is not None else "")
    near = nearest(str(seen), re.findall("'([^']+)'", item["ctx"]["expected"])) if item["type"] == "literal_error" else ""
    shown = "" if isinstance(seen, dict) and len(repr(seen)) > LONGEST_MAPPING else f"; seen: {seen!r}"
    return f"{key}: {item['msg'].removeprefix('Value error, ')}{near}{shown}"


def _allowed(field: FieldInfo) -> str:
    kinds = config_types(field.annotation)
    what = " or ".join(f"{{{', '.join(kind.model_fields)}}}" for kind in kinds) if kinds else _type_name(field.annotation)
    return f"{what} ({field.description})"


def _walk(config_type: type[Config], location: Sequence[int | str]) -> tuple[list[str], type[Config], FieldInfo | None]:
    """Pydantic's location as the parts of a key, the class that owns the last part, and the field that this is, if it is one.

    Where one of several classes stands, pydantic puts the name of the class it took, which is no part of a key.
    """
    parts: list[str] = []
    owner, field = config_type, None
    kinds: tuple[type[Config], ...] = (config_type,)
    for part in location:
        if isinstance(part, int):
            parts.append(str(part))
            field = None
            continue
        if len(kinds) > 1:
            kinds = tuple(kind for kind in kinds if kind.model_fields["name"].default == part)
            continue
        if kinds:
            (owner,) = kinds
        parts.append(part)
        field = owner.model_fields.get(part) if kinds else None
        kinds = (config_types(field.annotation) or config_types(next(iter(get_args(field.annotation)), None))) if field else ()
    return parts, owner, field


def config_types(annotation: Any) -> tuple[type[Config], ...]:
    """The configuration classes that a field of this annotation may hold: one, several told apart by their ``name``, or none."""
    members = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return tuple(member for member in members if isinstance(member, type) and issubclass(member, Config))


class Field(BaseModel):
    """One leaf of a configuration tree as `--help` shows it: dotted key, type, default (JSON) and description with its unit."""

    key: str
    type: str
    default: str
    description: str


def fields(config_type: type[Config], prefix: str = "") -> Iterator[Field]:
    """Every leaf of the tree under `config_type`, in order of declaration; where one of several classes may stand, the leaves of all."""
    for name, info in config_type.model_fields.items():
        key = f"{prefix}{name}"
        if kinds := config_types(info.annotation):
            leaves: dict[str, Field] = {}
            for leaf in (leaf for kind in kinds for leaf in fields(kind, f"{key}.")):
                known = leaves.setdefault(leaf.key, leaf)
                if leaf.type != known.type:
                    leaves[leaf.key] = known.model_copy(update={"type": f"{known.type} | {leaf.type}"})
            yield from leaves.values()
            continue
        default = "required" if info.is_required() else json.dumps(_plain(info.get_default(call_default_factory=True)))
        yield Field(key=key, type=_type_name(info.annotation), default=default, description=info.description or "")


def key_help(config_type: type[Config]) -> str:
    """Every key of a configuration with its type, default and description, for a command's help."""
    return "keys (key=value):\n" + "\n".join(
        f"  {field.key}  [{field.type}]  default: {field.default}\n      {field.description}" for field in fields(config_type)
    )


class CommandLine(argparse.ArgumentParser):
    """A command line of which what is wrong is a ConfigError, one line as for a wrong key, instead of a usage text and an exit."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError; of an unknown option with the nearest of this command's own."""
        unknown = re.search("unrecognized arguments: ([^ =]+)", message)
        near = nearest(unknown[1], self._option_string_actions) if unknown else ""
        raise ConfigError(message + near, fix=f"see {self.prog} --help")


def _type_name(annotation: Any) -> str:
    """The type as a person writes it, without what a value of it has to keep to."""
    if get_origin(annotation) is Annotated:
        return _type_name(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return f"tuple[{', '.join('...' if part is ... else _type_name(part) for part in get_args(annotation))}]"
    plain = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    return annotation.__name__ if plain else str(annotation).replace("typing.", "")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return value if isinstance(value, (int, float, str, bool, list, tuple, dict, type(None))) else str(value)


def flatten(config: Config) -> dict[str, Any]:
    """The configuration as ``{dotted key: plain value}``, the form that a tracker stores as parameters."""
    return flatten_values(config.model_dump(mode="json"))


def flatten_values(values: dict[str, Any]) -> dict[str, Any]:
    """A dumped configuration as ``{dotted key: plain value}``."""

    def walk(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from walk(item, f"{prefix}.{key}" if prefix else str(key))
        else:
            yield prefix, value

    return dict(walk(values, ""))


def to_yaml(config: Config) -> str:
    """The complete configuration as YAML; `load` of this text gives an equal configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
