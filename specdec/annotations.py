"""Plain values against annotations: what a yaml or a command line gives is text, numbers, truth values and lists."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Union

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
NUMBERS = {int: Integral, float: Real}
PLAIN = (type(None), bool, int, float, str, list, tuple)


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of a function's or a class's arguments; none where they name what is not there at run time."""
    try:
        return typing.get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # a plug-in's imports for type checkers, or written in C
        return {}


def fits(value: object, hint: Any) -> bool:
    """Whether a plain value is what the annotation says. Objects, and annotations of other kinds, are let through."""
    kind, inside = typing.get_origin(hint), typing.get_args(hint)
    if not isinstance(value, (*PLAIN, Mapping)) or hint in (Any, object):
        return True
    if kind in (Union, types.UnionType):
        return any(fits(value, each) for each in inside)
    if hint is None or hint is type(None):
        return value is None
    if hint in WORDS:
        wanted: Any = NUMBERS.get(hint, (str, Path) if hint is Path else hint)
        return isinstance(value, wanted) and (hint is bool or not isinstance(value, bool))
    if _is_list(hint):
        several = isinstance(value, Sequence) and not isinstance(value, str)
        named = isinstance(inside[0], type) and inside[0] not in WORDS  # in a yaml names stand for objects
        return several and all(
            (named and isinstance(each, str)) or fits(each, inside[0]) for each in typing.cast(Sequence[Any], value)
        )
    is_class = isinstance(hint, type) and kind is None and not typing.is_typeddict(hint)
    return not is_class or isinstance(value, Mapping) or _is_one(value, hint)


def words(hint: Any) -> str:
    """The annotation, as a sentence says what is expected."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return " or ".join(words(each) for each in typing.get_args(hint))
    if hint is None or hint is type(None):
        return "null"
    if _is_list(hint):
        return f"a list, each {words(typing.get_args(hint)[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))


def _is_list(hint: Any) -> bool:
    inside = typing.get_args(hint)
    return typing.get_origin(hint) in (list, Sequence) or (
        typing.get_origin(hint) is tuple and len(inside) == 2 and inside[1] is Ellipsis
    )


def _is_one(value: object, hint: type) -> bool:
    try:
        return isinstance(value, hint)
    except TypeError:  # a protocol that cannot be asked
        return False
