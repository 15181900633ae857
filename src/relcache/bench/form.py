"""The form of what a file holds: which keys a table has, and of which kind each value is."""

from __future__ import annotations

from typing import Any

NUMBER = (int, float)
MAYBE_NUMBER = (int, float, type(None))
KINDS = {dict: "a table", list: "a list", str: "a text", int: "a whole number", float: "a number", type(None): "null"}


def check_form(value: Any, form: Any, where: str = "") -> None:
    """See that `value`, read from JSON, has a form.

    A form is a type or a tuple of types; `[form]`, a list of any length; or a table of forms by key, in which `...`
    stands for all other keys. A value may have more keys than its form.

    Raises:
        ValueError: it has not; the message says where, what there is to be, and what there is.
    """
    if isinstance(form, dict):
        _check_kind(value, (dict,), where)
        for key in form:
            if key is not ... and key not in value:
                raise ValueError(f"{where or 'it'} has no {key!r}")
        for key, part in value.items():
            if key in form or ... in form:
                check_form(part, form.get(key, form.get(...)), f"{where}[{key!r}]" if where else repr(key))
    elif isinstance(form, list):
        _check_kind(value, (list,), where)
        for number, part in enumerate(value, 1):
            check_form(part, form[0], f"entry {number}{f' of {where}' if where else ''}")
    else:
        _check_kind(value, form if isinstance(form, tuple) else (form,), where)


def _check_kind(value: Any, kinds: tuple[type, ...], where: str) -> None:
    is_number = isinstance(value, bool) and int in kinds and bool not in kinds
    if not isinstance(value, kinds) or is_number:
        asked = " or ".join(KINDS.get(kind, kind.__name__) for kind in kinds)
        got = KINDS.get(type(value), type(value).__name__)
        raise ValueError(f"{where or 'it'} is {asked}, got {got}")
