"""A validated generation request between the wire and the engine: text, no token ids, no HTTP.

Both protocols build a `GenerateRequest`; neither sees what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tampu.core.chat import Message, ToolSpec
from tampu.core.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`mode` is auto, none, required or named; `names` are the tools allowed (one for named, empty = all)."""

    mode: str = "auto"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Constrained output: `schema` None means any JSON object (`json_object`)."""

    schema: dict[str, Any] | bool | None = None
    name: str = ""
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class FunctionSpec:
    """An embedded function: `code` is JavaScript that runs in the sandbox."""

    name: str
    code: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Exactly one of `prompt` and `messages` is set. `sampling.stop_token_ids` is filled by serving."""

    model: str
    sampling: SamplingParams
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None  # /v1/completions takes token ids; then prompt is None
    messages: tuple[Message, ...] | None = None
    is_raw: bool = False  # prompt as is, no chat template
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    parallel_tool_calls: bool = True
    functions: tuple[FunctionSpec, ...] = ()
    response_format: ResponseFormat | None = None
    lora: str | None = None
    tenant: str = ""
    request_id: str = ""  # UUID shown to the client
    echo: bool = False  # /v1/completions: repeat the prompt before the answer


def callable_tools(request: GenerateRequest) -> tuple[ToolSpec, ...]:
    """The tools the model may call: none, those that `tool_choice` names, or all."""
    choice = request.tool_choice
    if choice.mode == "none":
        return ()
    return tuple(tool for tool in request.tools if not choice.names or tool.name in choice.names)
