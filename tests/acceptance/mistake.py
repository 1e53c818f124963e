"""A mistake that can be made in the code."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """Some code of a function, what stands there by mistake, and a test that fails.

    Attributes:
        function: "module:name".
        code: occurs in it once.
        mistake: in its place.
        test: of the ordinary suite, as pytest names it below tests/.
        told: how the test's error begins; that of an assert may have a text of its own.
    """

    function: str
    code: str
    mistake: str
    test: str
    told: str = "assert"
