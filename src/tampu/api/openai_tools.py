"""Tools of the OpenAI routes: offered, chosen, or refused by name. Calls in answers are `openai_answer`'s business."""

from __future__ import annotations

from typing import Any, NoReturn

from tampu.api.conversation import parse_tools
from tampu.api.wire_options import parse_offered_choice
from tampu.core.chat import ToolSpec
from tampu.core.errors import InvalidRequestError
from tampu.serving.requests import ToolChoice


def read_tools(
    items: list[Any], choice: Any, *, tools_field: str = "tools", choice_field: str = "tool_choice"
) -> tuple[tuple[ToolSpec, ...], ToolChoice]:
    """The functions offered and how they may be used.

    Raises:
        InvalidRequestError: for a tool that is no function, a function without a name, and a choice of what is not
            offered.
    """
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get("type", "function") != "function":
            field = f"{tools_field}/{index}/type"
            raise InvalidRequestError(field, f"'{field}' must be \"function\": no other tool runs here")
    tools = parse_tools(items, _refuse, tools_field)
    return tools, parse_offered_choice(choice, {tool.name for tool in tools}, choice_field)


def _refuse(place: str, problem: str) -> NoReturn:
    """The native route leaves such tools out; OpenAI's refuses them."""
    raise InvalidRequestError(place, f"'{place}' {problem} and cannot be offered")
