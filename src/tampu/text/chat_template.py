"""Conversations to prompts, in the form each model family was trained on. Written in code: no template is evaluated.

Rendering yields segments, not text, so only the template itself writes special tokens. Knows no token ids. Histories
are expected in canonical form (`history.canonical_messages`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from tampu.core.chat import Message, ToolCall, ToolSpec
from tampu.text.segments import Segment, Special, Text

# What Llama 3.1's own template falls back to. A fixed date keeps prompts, and so cached prefixes, the same every day.
DEFAULT_DATE = "26 Jul 2024"

SMOLLM_SYSTEM_MESSAGE = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class ChatTemplate(Protocol):
    """How one model family writes a conversation."""

    @property
    def kind(self) -> str:
        """llama3, chatml or none."""

    @property
    def special_names(self) -> tuple[str, ...]:
        """Special tokens the rendering needs; the vocabulary must have them."""

    @property
    def shown_special_names(self) -> tuple[str, ...]:
        """Special tokens that mark tool calls in the model's answer: the tool-call parser wants to see them."""

    @property
    def end_of_turn_names(self) -> tuple[str, ...]:
        """Special tokens that end the model's turn, whatever the checkpoint lists as EOS."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, add_generation_prompt: bool = True
    ) -> list[Segment]:
        """The prompt. It ends where the model's answer begins, unless `add_generation_prompt` is off."""


def chat_template(kind: str, *, date: str = DEFAULT_DATE) -> ChatTemplate:
    """The template for `Checkpoint.chat_template`: llama3, chatml or none. `date` is what Llama 3.1 is told is today.

    Raises ValueError for another kind.
    """
    match kind:
        case "llama3":
            return Llama3Template(date)
        case "chatml":
            return ChatMLTemplate()
        case "none":
            return PlainTemplate()
    raise ValueError(f"chat template {kind!r} is not one of llama3, chatml, none")


def tool_json(tool: ToolSpec) -> dict[str, Any]:
    """A tool as the templates show it to the model."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def call_json(call: ToolCall, arguments_key: str) -> str:
    """A call as the model writes it: `{"name": "f", "parameters": {...}}`, or with `arguments`."""
    return _json({"name": call.name, arguments_key: call.arguments})


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


class Llama3Template:
    """Llama 3.1's own template, token for token, and beyond it what that template refuses.

    Kept from it: system header with both dates, contents stripped, tools in the first user message, tool results as a
    JSON string from the role ipython, text beside a tool call left out. Beyond it: several calls in one turn (joined by
    "; "), tools in the system message when the conversation does not open with a user turn.
    """

    kind = "llama3"
    special_names = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    shown_special_names = ("<|python_tag|>",)
    end_of_turn_names = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")

    _CALL_FORMAT = (
        'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
        "Do not use variables.\n\n"
    )
    _TOOLS_FOR_USER = (
        "Given the following functions, please respond with a JSON for a function call "
        "with its proper arguments that best answers the given prompt.\n\n"
    )
    _TOOLS_FOR_SYSTEM = (
        "You have access to the following functions. To call a function, please respond with JSON for a function call."
    )

    def __init__(self, date: str = DEFAULT_DATE) -> None:
        self.date = date

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, add_generation_prompt: bool = True
    ) -> list[Segment]:
        """See `ChatTemplate.render`."""
        turns = list(messages)
        system = turns.pop(0).content.strip() if turns and turns[0].role == "system" else ""
        opens_with_user = bool(turns) and turns[0].role == "user"

        header = "Environment: ipython\n" if tools else ""
        header += f"Cutting Knowledge Date: December 2023\nToday Date: {self.date}\n\n"
        if tools and not opens_with_user:
            header += self._TOOLS_FOR_SYSTEM + self._tool_list(tools)
        segments: list[Segment] = [Special("<|begin_of_text|>"), *self._turn("system", header + system)]
        if tools and opens_with_user:
            question = turns.pop(0).content.strip()
            segments += self._turn("user", self._TOOLS_FOR_USER + self._tool_list(tools) + question)
        for message in turns:
            segments += self._message(message)
        if add_generation_prompt:
            segments += self._header("assistant")
        return segments

    def _tool_list(self, tools: Sequence[ToolSpec]) -> str:
        return self._CALL_FORMAT + "".join(_json(tool_json(tool), indent=4) + "\n\n" for tool in tools)

    def _message(self, message: Message) -> list[Segment]:
        if message.tool_calls:
            return self._turn("assistant", "; ".join(call_json(call, "parameters") for call in message.tool_calls))
        if message.role in ("tool", "ipython"):
            return self._turn("ipython", _json(message.content))
        return self._turn(message.role, message.content.strip())

    def _turn(self, role: str, content: str) -> list[Segment]:
        return [*self._header(role), Text(content), Special("<|eot_id|>")]

    @staticmethod
    def _header(role: str) -> list[Segment]:
        return [Special("<|start_header_id|>"), Text(role), Special("<|end_header_id|>"), Text("\n\n")]


class ChatMLTemplate:
    """ChatML as SmolLM2 has it: its default system message when the conversation opens with another role.

    SmolLM2's own template knows no tools. They are listed in the system message, calls are written in <tool_call>
    tags with `arguments`, results come in <tool_response> tags from the user's side: the form Hermes and Qwen models
    were trained on.
    """

    kind = "chatml"
    special_names = ("<|im_start|>", "<|im_end|>")
    shown_special_names = ("<tool_call>", "</tool_call>")  # ordinary text in SmolLM2, special in some vocabularies
    end_of_turn_names = ("<|im_end|>", "<|endoftext|>")

    _TOOLS_HEAD = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    )
    _TOOLS_TAIL = (
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}'
        "\n</tool_call>"
    )

    def __init__(self, default_system_message: str = SMOLLM_SYSTEM_MESSAGE) -> None:
        self._default_system_message = default_system_message

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, add_generation_prompt: bool = True
    ) -> list[Segment]:
        """See `ChatTemplate.render`."""
        turns = list(messages)
        opens_with_system = bool(turns) and turns[0].role == "system"
        system = turns.pop(0).content if opens_with_system else self._default_system_message
        if tools:
            listed = "".join("\n" + _json(tool_json(tool)) for tool in tools)
            system = "\n\n".join(part for part in (system, self._TOOLS_HEAD + listed + self._TOOLS_TAIL) if part)
        segments = self._turn("system", system)
        position = 0
        while position < len(turns):
            message = turns[position]
            position += 1
            if message.role != "tool":
                segments += self._turn(message.role, self._content(message))
                continue
            results = [message.content]
            while position < len(turns) and turns[position].role == "tool":
                results.append(turns[position].content)
                position += 1
            tagged = "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
            segments += self._turn("user", tagged)
        if add_generation_prompt:
            segments += [Special("<|im_start|>"), Text("assistant\n")]
        return segments

    @staticmethod
    def _content(message: Message) -> str:
        calls = [f"<tool_call>\n{call_json(call, 'arguments')}\n</tool_call>" for call in message.tool_calls]
        return "\n".join(part for part in (message.content, *calls) if part) if calls else message.content

    @staticmethod
    def _turn(role: str, content: str) -> list[Segment]:
        return [Special("<|im_start|>"), Text(f"{role}\n{content}"), Special("<|im_end|>"), Text("\n")]


class PlainTemplate:
    """For base models, which know no turns: a transcript in plain text."""

    kind = "none"
    special_names: tuple[str, ...] = ()
    shown_special_names: tuple[str, ...] = ()
    end_of_turn_names: tuple[str, ...] = ()

    def render(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), *, add_generation_prompt: bool = True
    ) -> list[Segment]:
        """See `ChatTemplate.render`."""
        parts: list[str] = []
        if tools:
            listed = "\n".join(_json(tool_json(tool)) for tool in tools)
            parts.append('Functions, called by writing {"name": ..., "arguments": {...}}:\n' + listed)
        for message in messages:
            calls = [call_json(call, "arguments") for call in message.tool_calls]
            content = "\n".join(part for part in (message.content.strip(), *calls) if part)
            parts.append(f"{message.role.capitalize()}: {content}")
        if add_generation_prompt:
            parts.append("Assistant:")
        return [Text("\n\n".join(parts))]
