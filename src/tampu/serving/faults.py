"""Faults on demand, for clients that want to see how they take them. Only the mock raises these."""

from __future__ import annotations

from tampu.core.errors import TampuError


class MockFaultError(TampuError):
    """An error with a code of the wire's own table; `status` None = the code's usual HTTP status."""

    def __init__(self, code: int, status: int | None = None) -> None:
        super().__init__(f"fault {code} on demand")
        self.code = code
        self.status = status


class StreamCut(BaseException):
    """The connection is to break off here, without a last word.

    Not an `Exception`: what turns failures into error frames must not catch it.
    """
