"""Tools of the OpenAI routes: offered, chosen, or refused by name. Calls in answers are `openai_answer`'s business."""

from __future__ import annotations

from typing import Any

from tampu.api.conversation import parse_tools
from tampu.api.wire_options import parse_tool_choice
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
    notes: list[str] = []
    tools = parse_tools(items, notes, tools_field)
    if notes:  # the native route leaves such tools out; OpenAI's refuses them
        field = notes[0].split("'")[1]  # a note begins with the place of the tool
        raise InvalidRequestError(field, notes[0].replace("was left out", "cannot be offered").rstrip("."))
    return tools, _offered_choice(choice, choice_field, tools)


def _offered_choice(value: Any, field: str, tools: tuple[ToolSpec, ...]) -> ToolChoice:
    choice = parse_tool_choice(value, field)
    offered = {tool.name for tool in tools}
    for name in choice.names:
        if name not in offered:
            raise InvalidRequestError(
                field,
                f"'{field}' names the function {name!r}, which is not offered",
                hint=f"Offered are: {', '.join(sorted(offered)) or 'none'}.",
            )
    if choice.mode == "required" and not tools:
        raise InvalidRequestError(
            field,
            f"'{field}' is \"required\" but no tools are offered",
            hint=f"Offer some in 'tools' or leave '{field}' out.",
        )
    return choice
