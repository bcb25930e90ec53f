# SPDX-License-Identifier: Apache-2.0
"""The interface's definition as PyPI's varlink reads it, and a strict comparison of values with it."""

from pathlib import Path
from typing import Any

from varlink import scanner

import otad.control.server

DEFINITION = scanner.Interface(
    (Path(otad.control.server.__file__).parent / "io.otad.Update.varlink").read_text("utf-8")
)


def conform(name: str, value: Any) -> None:
    """Assert that `value` is of the definition's type `name`: every field there, and no other."""
    _compare(DEFINITION.members[name].type, value, name)


def _compare(wanted: Any, value: Any, where: str) -> None:
    match wanted:
        case scanner._Maybe():
            if value is not None:
                _compare(wanted.element_type, value, where)
        case scanner._CustomType():
            _compare(DEFINITION.members[wanted.name].type, value, where)
        case scanner._Struct():
            assert isinstance(value, dict), where
            assert list(value) == list(wanted.fields), where
            for field, kind in wanted.fields.items():
                _compare(kind, value[field], f"{where}.{field}")
        case scanner._Dict():
            assert isinstance(value, dict), where
            for key, item in value.items():
                _compare(wanted.element_type, item, f"{where}[{key}]")
        case scanner._Array():
            assert isinstance(value, list), where
            for item in value:
                _compare(wanted.element_type, item, f"{where}[]")
        case scanner._Enum():
            assert value in list(wanted.fields), where
        case _:
            assert type(value) is type(wanted), where
