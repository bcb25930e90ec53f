# SPDX-License-Identifier: Apache-2.0
"""The state file's format: `encode(State) -> bytes`, `decode(bytes) -> State`.

One JSON document, UTF-8, ended by a newline:

    {"schema": 1, "checksum": "<sha256 of the text of `state`>", "state": {"known": true, "serial": 7, ...}}

`state` is `core.model.State` field by field: dataclasses are objects, tuples are arrays, enums are their words, and a
report has one more key, `kind`, that says which of the union it is. The checksum is over the compact JSON text of
`state` with sorted keys.

Compatibility: after a rollback the old system reads what the new one wrote. So within a schema number keys are only
ever added, each with a default; unknown keys are passed over. A document that is damaged, that has another schema, or
in which a key has the wrong type raises `StateError`, whose text names the place; nothing is guessed.
"""

import dataclasses
import hashlib
import json
import types
import typing
from enum import StrEnum
from functools import cache
from typing import Any, cast

from otad.core.model import Inform, State, Step

SCHEMA = 1
BYTES_MAX = 1 << 20

_KINDS: dict[str, type] = {"step": Step, "inform": Inform}


class StateError(Exception):
    """A state file that is not one, with what is wrong and where."""


def encode(state: State) -> bytes:
    plain = _plain(state)
    checksum = hashlib.sha256(_text(plain)).hexdigest()
    return json.dumps({"schema": SCHEMA, "checksum": checksum, "state": plain}, indent=1).encode() + b"\n"


def decode(content: bytes) -> State:
    """Raise StateError for anything that `encode` would not have written."""
    if len(content) > BYTES_MAX:
        raise StateError(f"state: {len(content)} bytes: more than {BYTES_MAX}")
    try:
        document = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise StateError(f"state: {error}") from error
    if not isinstance(document, dict):
        raise StateError("state: not a JSON object")
    schema = document.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise StateError(f"schema: {schema!r:.40}: this otad reads {SCHEMA}")
    plain = document.get("state")
    try:
        checksum = hashlib.sha256(_text(plain)).hexdigest()
    except (ValueError, RecursionError) as error:
        raise StateError(f"state: {error}") from error
    if document.get("checksum") != checksum:
        raise StateError("checksum: does not match, the document is damaged")
    return cast("State", _value(plain, State, "state"))


def _text(plain: Any) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        members = {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        kind = next((kind for kind, report in _KINDS.items() if isinstance(value, report)), None)
        return members if kind is None else {"kind": kind, **members}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


def _value(plain: Any, wanted: Any, where: str) -> Any:
    """`plain` as the type `wanted`; `where` names the place for the error."""
    if isinstance(wanted, typing.NewType):
        return _value(plain, wanted.__supertype__, where)
    if typing.get_origin(wanted) in (types.UnionType, typing.Union):
        return _one_of(plain, typing.get_args(wanted), where)
    if typing.get_origin(wanted) is tuple:
        if not isinstance(plain, list):
            raise StateError(f"{where}: not an array")
        (item, _) = typing.get_args(wanted)
        return tuple(_value(member, item, f"{where}[{n}]") for n, member in enumerate(plain))
    if dataclasses.is_dataclass(wanted):
        return _object(plain, cast("type", wanted), where)
    if type(plain) is not (str if issubclass(wanted, StrEnum) else wanted):  # not isinstance: True is no int here
        raise StateError(f"{where}: {plain!r:.40}: not of type {wanted.__name__}")
    try:
        return wanted(plain)
    except ValueError as error:
        raise StateError(f"{where}: {plain!r:.40}: none of the words of {wanted.__name__}") from error


def _one_of(plain: Any, options: tuple[Any, ...], where: str) -> Any:
    if plain is None and types.NoneType in options:
        return None
    options = tuple(option for option in options if option is not types.NoneType)
    if len(options) == 1:
        return _value(plain, options[0], where)
    kind = plain.get("kind") if isinstance(plain, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise StateError(f"{where}: kind {kind!r:.40} is none of {', '.join(_KINDS)}")
    return _object(plain, _KINDS[kind], where)


def _object(plain: Any, wanted: type, where: str) -> Any:
    if not isinstance(plain, dict):
        raise StateError(f"{where}: not an object")
    members = {
        name: _value(plain[name], hint, f"{where}.{name}") for name, hint in _hints(wanted).items() if name in plain
    }
    try:
        return wanted(**members)
    except TypeError as error:
        raise StateError(f"{where}: {error}") from error


@cache
def _hints(wanted: type) -> dict[str, Any]:
    return typing.get_type_hints(wanted)
