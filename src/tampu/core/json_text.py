"""Reads JSON that a client or a model wrote into values that every writer of this project can write again."""

from __future__ import annotations

import json
import math
from typing import Any


def read_json(text: str, *, strict: bool = True) -> Any:
    r"""The JSON value that `text` spells (RFC 8259). As in JavaScript, the last of two equal keys wins.

    Integers beyond 64 bits become floats, as in the fast parser of request bodies, so that a call spelled in text and
    the same call sent as a value stay equal. Half a surrogate pair, from a `\ud800`-style escape, becomes U+FFFD,
    because no tokenizer can read it.

    Args:
        strict: False lets control characters stand in strings; models write line breaks there.

    Raises:
        ValueError: `text` is not JSON, or a number in it is not finite.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text, strict=strict, parse_int=read_integer, parse_float=_finite, parse_constant=_finite)
    spelled = json.dumps(value, ensure_ascii=False)
    try:
        spelled.encode()
    except UnicodeEncodeError:
        return json.loads(spelled.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    return value


def read_integer(number: str) -> int | float:
    """An integer's digits as a number; beyond 64 bits as a float. Raises ValueError for what no float can hold.

    Both signed and unsigned 64 bits keep their digits; the fast parser and the writer of answers hold no others.
    """
    if len(number) <= 20:  # the digits of 2**64; with a sign those of 2**63
        value = int(number)
        if -(2**63) <= value < 2**64:
            return value
    return _finite(number)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value
