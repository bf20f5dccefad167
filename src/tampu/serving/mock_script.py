"""What the mock says: rules from a JSON or YAML file, and directives in a header or a prompt.

A script file:

    replies:
      - when: weather                # text in the last message; /.../ is a regular expression; left out = always
        reply: It is sunny.          # or a list: one for each time the rule applies, the last one again and again
      - when: {tool: get_weather}    # the request offers this tool and the last message is not a tool's result
        tool_calls: [{name: get_weather, arguments: {city: Lima}}]
      - when: flaky
        error: 3040                  # a code of the error table; `status: 503` for a bare HTTP status
        times: 2                     # applies twice, then the next rule that fits

Further keys: delay_ms (before the first token), token_delay_ms (between tokens), cut_after (so many tokens, then the
connection breaks off), finish_reason. A header, `x-tampu-mock: error=3040`, and a prompt, `[[mock error=3040]]`, take
the keys of DIRECTIVE_KEYS. What is wrong is refused, never passed over: a test must not pass without its fault.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Collection, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tampu.core.chat import ToolCall
from tampu.core.errors import ConfigError, InvalidRequestError
from tampu.core.output import FinishReason
from tampu.serving.faults import MockFaultError
from tampu.serving.requests import GenerateRequest

# What the current request's `x-tampu-mock` header says; set by the HTTP layer.
DIRECTIVE: ContextVar[str] = ContextVar("tampu_mock_directive", default="")
HEADER = "x-tampu-mock"
DIRECTIVE_KEYS = frozenset({"error", "status", "delay_ms", "token_delay_ms", "cut_after", "finish_reason"})

_MARKER = re.compile(r"\[\[mock(?=[\s:=\]])([^\[\]]*)\]\]")
_SCRIPT_KEYS = DIRECTIVE_KEYS | {"when", "reply", "tool_calls", "times"}
_STATUSES = range(400, 600)  # a body of ours under any other status would be no HTTP answer, or no failure
_INTERNAL_ERROR = 3043
_LONGEST_DELAY_MS = 24 * 60 * 60 * 1000
_MAX_SCRIPT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Cue:
    """What one request gets. `reply` None = the mock makes something up."""

    reply: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    error: int | None = None
    status: int | None = None
    delay_ms: float = 0.0
    token_delay_ms: float = 0.0
    cut_after: int | None = None
    finish_reason: str | None = None

    async def begin(self) -> None:
        """Wait as long as it says. Raises MockFaultError when the request is to fail."""
        await asyncio.sleep(self.delay_ms / 1000)
        if self.error is not None or self.status is not None:
            raise MockFaultError(_INTERNAL_ERROR if self.error is None else self.error, self.status)


@dataclass(frozen=True, slots=True)
class Condition:
    """When a rule applies; an empty condition always does."""

    contains: str = ""
    pattern: re.Pattern[str] | None = None
    tool: str = ""

    def fits(self, request: GenerateRequest) -> bool:
        """True when this request is meant."""
        text = last_text(request)
        if self.tool and (self.tool not in {tool.name for tool in request.tools} or _ends_with_result(request)):
            return False
        if self.pattern is not None and self.pattern.search(text) is None:
            return False
        return self.contains in text


@dataclass(slots=True)
class Rule:
    """A condition with one cue for each time it applies; the last cue is repeated until `times` is used up."""

    condition: Condition
    cues: tuple[Cue, ...]
    times: int | None = None
    num_used: int = 0

    def next_cue(self) -> Cue | None:
        """The cue of this time, or None when the rule is used up."""
        if self.times is not None and self.num_used >= self.times:
            return None
        cue = self.cues[min(self.num_used, len(self.cues) - 1)]
        self.num_used += 1
        return cue


@dataclass(slots=True)
class Script:
    """Rules in order; the first that fits and is not used up speaks. `error_codes` are the ones that the wire knows."""

    error_codes: Collection[int]
    rules: list[Rule] = field(default_factory=list)

    def cue_for(self, request: GenerateRequest) -> Cue:
        """The cue of a request: the script's, with what prompt markers and then the header say laid over it.

        Raises:
            InvalidRequestError: naming what cannot be followed; no rule is used up then.
        """
        changes = directed([(_text_field(request), last_text(request))], self.error_codes)
        for rule in self.rules:
            if rule.condition.fits(request):
                found = rule.next_cue()
                if found is not None:
                    return replace(found, **changes)
        return Cue(**changes)


def last_text(request: GenerateRequest) -> str:
    """The prompt, or the last message of a conversation."""
    if request.prompt is not None:
        return request.prompt
    return request.messages[-1].content if request.messages else ""


def _text_field(request: GenerateRequest) -> str:
    return "prompt" if request.prompt is not None else f"messages/{len(request.messages or ()) - 1}/content"


def _ends_with_result(request: GenerateRequest) -> bool:
    return bool(request.messages) and request.messages is not None and request.messages[-1].role == "tool"


def directed(
    texts: Iterable[tuple[str, str]], error_codes: Collection[int], keys: Collection[str] = DIRECTIVE_KEYS
) -> dict[str, Any]:
    """The members of a cue that the markers in `texts` (field, text) and then the request's header set.

    Raises:
        InvalidRequestError: naming the field, the key, its value and what is known.
    """
    changes: dict[str, Any] = {}
    directives = [(where, marker) for where, text in texts for marker in _MARKER.findall(text)]
    header = DIRECTIVE.get()
    for where, directive in (*directives, *([(HEADER, header)] if header else [])):
        pairs = [pair for pair in re.split(r"[\s;,]+", directive) if pair]
        if not pairs:
            raise _wrong_directive(where, f"names no key (known: {', '.join(sorted(keys))})")
        for pair in pairs:
            key, _, written = pair.partition("=")
            if key not in keys:
                raise _wrong_directive(where, f"{key!r:.80} is not a key here (known: {', '.join(sorted(keys))})")
            value = int(written) if re.fullmatch(r"[0-9]{1,9}", written) else written
            problem = _problem(key, value, error_codes)
            if problem:
                raise _wrong_directive(where, f"{key} {problem}")
            changes[key] = value
    return changes


def _wrong_directive(where: str, problem: str) -> InvalidRequestError:
    return InvalidRequestError(where, f"the mock directive in '{where}' cannot be followed: {problem}")


def _problem(key: str, value: Any, error_codes: Collection[int]) -> str:
    """What is wrong with the value of a key, as the end of a sentence; "" when it is right."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match key:
        case "error":
            allowed = f"one of the codes {', '.join(map(str, sorted(error_codes)))}"
            is_right = isinstance(value, int) and is_number and value in error_codes
        case "status":
            allowed = f"an HTTP status from {_STATUSES.start} to {_STATUSES.stop - 1}"
            is_right = isinstance(value, int) and value in _STATUSES
        case "finish_reason":
            allowed = f"one of {', '.join(FinishReason)}"
            is_right = isinstance(value, str) and value in tuple(FinishReason)
        case "delay_ms" | "token_delay_ms":
            allowed = f"a number of milliseconds from 0 to {_LONGEST_DELAY_MS}"
            is_right = is_number and 0 <= value <= _LONGEST_DELAY_MS
        case _:  # cut_after, times
            allowed = "a whole number of at least 0"
            is_right = isinstance(value, int) and is_number and value >= 0
    return "" if is_right else f"must be {allowed}, not {value!r:.80}"


def load_script(path: str | Path, error_codes: Collection[int]) -> Script:
    """Read a script file; YAML covers JSON.

    Raises:
        ConfigError: naming the file, the rule and what is wrong with it.
    """
    import yaml  # only the mock with a script pays for it

    name = f"mock script {path}"
    try:
        if Path(path).stat().st_size > _MAX_SCRIPT_BYTES:
            raise ConfigError(name, "is larger than 16 MB")
        document = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(name, f"cannot be read: {error}") from None
    rules = document.get("replies") if isinstance(document, dict) else document
    if not isinstance(rules, list):
        raise ConfigError(name, "must hold a list of rules under 'replies'")
    read = [_rule(entry, f"{name}, rule {index}", error_codes) for index, entry in enumerate(rules)]
    return Script(error_codes, read)


def _rule(entry: Any, where: str, error_codes: Collection[int]) -> Rule:
    if isinstance(entry, str):
        return Rule(Condition(), (Cue(reply=entry),))
    if not isinstance(entry, dict):
        raise ConfigError(where, "must be a text or an object")
    unknown = sorted(str(key) for key in entry.keys() - _SCRIPT_KEYS)
    if unknown:
        raise ConfigError(where, f"unknown keys {', '.join(unknown)} (known: {', '.join(sorted(_SCRIPT_KEYS))})")
    settings = {key: entry[key] for key in (*sorted(DIRECTIVE_KEYS), "times") if entry.get(key) is not None}
    for key, value in settings.items():
        problem = _problem(key, value, error_codes)
        if problem:
            raise ConfigError(where, f"{key} {problem}")
    times = settings.pop("times", None)
    cue = Cue(**settings, tool_calls=_tool_calls(entry.get("tool_calls"), where))
    replies = entry.get("reply")
    texts = replies if isinstance(replies, list) else [replies]
    cues = tuple(replace(cue, reply=None if text is None else _reply_text(text)) for text in texts) or (cue,)
    return Rule(_condition(entry.get("when"), where), cues, times)


def _reply_text(value: Any) -> str:
    """A reply may be written as an object: it is then the JSON text of it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _condition(value: Any, where: str) -> Condition:
    if value is None:
        return Condition()
    if isinstance(value, str):
        return _text_condition(value, where)
    if isinstance(value, dict) and value.keys() <= {"text", "tool"}:
        text = _text_condition(str(value.get("text", "")), where)
        return replace(text, tool=str(value.get("tool", "")))
    raise ConfigError(where, "'when' must be a text, /a pattern/ or an object with 'text' and 'tool'")


def _text_condition(text: str, where: str) -> Condition:
    if len(text) > 2 and text.startswith("/") and text.endswith("/"):
        try:
            return Condition(pattern=re.compile(text[1:-1]))
        except re.error as error:
            raise ConfigError(where, f"the pattern {text} is wrong: {error}") from None
    return Condition(contains=text)


def _tool_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    if value is None:
        return ()
    calls = []
    for entry in value if isinstance(value, list) else [value]:
        is_call = isinstance(entry, dict) and entry.keys() <= {"name", "arguments"}
        arguments = entry.get("arguments", {}) if is_call else None
        if not isinstance(arguments, dict) or not isinstance(entry.get("name"), str):
            raise ConfigError(where, "'tool_calls' must be a list of {name, arguments}")
        calls.append(ToolCall(entry["name"], arguments))
    return tuple(calls)
