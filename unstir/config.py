"""Configurations: frozen dataclasses to JSON and back, and their fields by path.

Knows: how a dataclass becomes a dictionary, what is wrong with one that does not become a dataclass again.
Does not know: any particular configuration.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError

T = TypeVar("T")


def registered(
    registry: Mapping[str, type[Any]],
    parts: Mapping[str, Mapping[str, type[Any]]] | None = None,
    *,
    otherwise: str = "",
) -> tuple[PlainValidator, PlainSerializer]:
    """Annotations for a field that holds one of several classes: it is stored as ``{"kind": name, ...fields}``.

    Args:
        registry: the classes, by name.
        parts: registries of fields, by the fields' names, that hold such an object in their turn.
        otherwise: what may be done about a name that is unknown, as the end of a sentence.
    """

    def build(value: object) -> object:
        return _build(value, registry, parts or {}, otherwise)

    def describe(value: object) -> dict[str, Any]:
        return _describe(value, registry, parts or {})

    return PlainValidator(build), PlainSerializer(describe)


def _build(
    value: object, registry: Mapping[str, type[Any]], parts: Mapping[str, Mapping[str, type[Any]]], otherwise: str = ""
) -> object:
    if type(value) in registry.values():
        return value
    given = dict(cast("dict[str, Any]", value)) if isinstance(value, dict) else {"kind": value}
    kind = str(given.pop("kind", None))
    if kind not in registry:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(registry)}{otherwise}")
    cls = registry[kind]
    own = {field.name: field for field in fields(cls)}
    if not own.keys() & parts.keys():
        return from_dict(cls, given)
    _refuse_unknown(given, own, "")
    missing = [f.name for f in own.values() if f.default is f.default_factory is MISSING and f.name not in given]
    if missing:
        raise ValueError(f"{kind} needs a setting {missing[0]!r}")
    hints = get_type_hints(cls)
    built = {
        name: _build(item, parts[name], parts) if name in parts else _field(name, item, hints[name])
        for name, item in given.items()
    }
    return cls(**built)


def _field(name: str, value: object, hint: Any) -> object:
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name}: {_plain(error.errors()[0]['msg'])}, got {_short(value)}") from None


def _describe(
    value: object, registry: Mapping[str, type[Any]], parts: Mapping[str, Mapping[str, type[Any]]]
) -> dict[str, Any]:
    kind = next(name for name, cls in registry.items() if cls is type(value))
    own = {field.name for field in fields(cast(Any, value))}
    if not own & parts.keys():
        return {"kind": kind, **to_dict(value)}
    held = {name: getattr(value, name) for name in own}
    described = {name: _describe(item, parts[name], parts) if name in parts else item for name, item in held.items()}
    return {"kind": kind, **described}


def to_dict(value: object) -> dict[str, Any]:
    """A dataclass as a dictionary of what JSON can hold."""
    return _adapter(type(value)).dump_python(value, mode="json")


def from_dict(cls: type[T], data: Mapping[str, Any]) -> T:
    """The dataclass that a dictionary describes; fields left out take their defaults.

    Raises:
        ValueError: naming the first field that is unknown, missing or of a wrong kind.
    """
    adapter = _adapter(cls)
    try:
        value = adapter.validate_python(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path or 'value'}: {_plain(first['msg'])}, got {_short(first['input'])}") from None
    _refuse_unknown(data, adapter.dump_python(value, mode="json"), "")
    return value


def override(config: T, changes: Sequence[tuple[str, str]]) -> T:
    """The configuration with some fields, named by path, set to new values.

    Args:
        config: any dataclass.
        changes: pairs of path (``training.batch``) and text; the text is read as JSON, else as a string, or as several
            with commas where the field holds several.

    Raises:
        ValueError: if a path does not exist (the nearest is suggested) or a value does not fit.
    """
    data = to_dict(config)
    for path, text in changes:
        parts = path.split(".")
        place: Any = data
        for depth, part in enumerate(parts):
            if not isinstance(place, dict) or part not in place:
                raise ValueError(f"no setting {path!r}{_suggestion(path, _paths(data))}")
            if depth < len(parts) - 1:
                place = cast("dict[str, Any]", place)[part]
        fields = cast("dict[str, Any]", place)
        fields[parts[-1]] = _parse(text, fields[parts[-1]])
        if isinstance(fields[parts[-1]], dict):  # another kind has other fields, which later changes may set
            data = to_dict(from_dict(type(config), data))
    return from_dict(type(config), data)


def choose(name: str, registry: Iterable[str], what: str) -> str:
    """The name, if the registry has it.

    Raises:
        ValueError: with the names that there are, the nearest first.
    """
    names = list(registry)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown {what} {name!r}; {hint}there are {', '.join(names)}")
    return name


def read_json(text: str, source: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        ValueError: naming ``source`` if it holds no JSON object.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{source} is no valid JSON (line {error.lineno}: {error.msg})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{source} should hold a JSON object, got a {type(data).__name__}")
    return cast("dict[str, Any]", data)


@lru_cache(maxsize=64)
def _adapter(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


def read_json_file(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it holds no JSON object.
    """
    try:
        return read_json(path.read_text("utf-8"), str(path))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no valid JSON (it is not UTF-8 text)") from None


def write_text_file(path: Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        OSError: if it cannot be written; what was there is untouched then.
    """
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def _parse(text: str, old: object) -> Any:
    if isinstance(old, str):
        return text
    if isinstance(old, dict) and "kind" in old and not text.startswith("{"):
        return {"kind": text}
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [part.strip() for part in text.split(",")] if isinstance(old, list) else text


def _refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], prefix: str) -> None:
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"no setting {prefix + key!r}{_suggestion(key, list(known))}")
        if isinstance(value, dict) and isinstance(known[key], dict):
            _refuse_unknown(cast("dict[str, Any]", value), known[key], f"{prefix}{key}.")


def _paths(data: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in data.items():
        found.append(prefix + key)
        if isinstance(value, dict):
            found += _paths(cast("dict[str, Any]", value), f"{prefix}{key}.")
    return found


def _suggestion(given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(k for k in known if '.' not in k)}"


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
