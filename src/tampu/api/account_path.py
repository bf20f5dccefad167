"""What the account id in a path may look like. Whether the caller may use it is `auth`'s business."""

from __future__ import annotations

from starlette.requests import Request

from tampu.api.context import context_of
from tampu.api.errors import ApiError

_HEX = frozenset("0123456789abcdef")


def check_account_id(request: Request, account_id: str) -> None:
    """Strict mode wants the hosted form (32 hexadecimal digits); otherwise any short printable id will do.

    Raises:
        ApiError: 7003 with the path as the client sent it.
    """
    is_hosted_form = len(account_id) == 32 and _HEX.issuperset(account_id)
    is_usable = 0 < len(account_id) <= 128 and account_id.isprintable() and " " not in account_id
    if not (is_hosted_form if context_of(request).config.is_strict else is_usable):
        raise ApiError(7003, request.scope["path"])
