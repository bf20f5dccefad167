"""What the mock says: rules from a JSON or YAML file, and directives in a header or a prompt. Pure values.

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
connection breaks off), finish_reason. The same keys work in a header, `x-tampu-mock: error=3040`, and in a prompt,
`[[mock error=3040]]`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tampu.core.chat import ToolCall
from tampu.core.errors import ConfigError
from tampu.serving.requests import GenerateRequest

_MARKER = re.compile(r"\[\[mock ([^\]]{1,500})\]\]")
_NUMBERS = ("error", "status", "delay_ms", "token_delay_ms", "cut_after", "times")
_KEYS = frozenset({"when", "reply", "tool_calls", "finish_reason", *_NUMBERS})
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
    """Rules in order; the first that fits and is not used up speaks."""

    rules: list[Rule] = field(default_factory=list)

    def cue_for(self, request: GenerateRequest, directive: str = "") -> Cue:
        """The cue of a request: the script's, with what a prompt marker and then `directive` say laid over it."""
        cue = Cue()
        for rule in self.rules:
            if rule.condition.fits(request):
                found = rule.next_cue()
                if found is not None:
                    cue = found
                    break
        marker = _MARKER.search(last_text(request))
        for text in (marker[1] if marker else "", directive):
            if text:
                cue = _overlaid(cue, text)
        return cue


def last_text(request: GenerateRequest) -> str:
    """The prompt, or the last message of a conversation."""
    if request.prompt is not None:
        return request.prompt
    return request.messages[-1].content if request.messages else ""


def _ends_with_result(request: GenerateRequest) -> bool:
    return bool(request.messages) and request.messages is not None and request.messages[-1].role == "tool"


def load_script(path: str | Path) -> Script:
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
    return Script([_rule(entry, f"{name}, rule {index}") for index, entry in enumerate(rules)])


def _rule(entry: Any, where: str) -> Rule:
    if isinstance(entry, str):
        return Rule(Condition(), (Cue(reply=entry),))
    if not isinstance(entry, dict):
        raise ConfigError(where, "must be a text or an object")
    unknown = sorted(str(key) for key in entry.keys() - _KEYS)
    if unknown:
        raise ConfigError(where, f"unknown keys {', '.join(unknown)} (known: {', '.join(sorted(_KEYS))})")
    settings = {key: _number(entry[key], f"{where}: {key}") for key in _NUMBERS if entry.get(key) is not None}
    times = settings.pop("times", None)
    cue = Cue(
        **settings,
        tool_calls=_tool_calls(entry.get("tool_calls"), where),
        finish_reason=entry.get("finish_reason"),
    )
    replies = entry.get("reply")
    texts = replies if isinstance(replies, list) else [replies]
    cues = tuple(replace(cue, reply=None if text is None else _reply_text(text)) for text in texts) or (cue,)
    return Rule(_condition(entry.get("when"), where), cues, None if times is None else int(times))


def _reply_text(value: Any) -> str:
    """A reply may be written as an object: it is then the JSON text of it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise ConfigError(where, f"must be a number of at least 0, not {value!r}")
    return value


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
        arguments = entry.get("arguments", {}) if isinstance(entry, dict) else None
        if not isinstance(arguments, dict) or not isinstance(entry.get("name"), str):
            raise ConfigError(where, "'tool_calls' must be a list of {name, arguments}")
        calls.append(ToolCall(entry["name"], arguments))
    return tuple(calls)


def _overlaid(cue: Cue, directive: str) -> Cue:
    """`cue` with `key=value` pairs laid over it; what cannot be read is left out, it came from a request."""
    changes: dict[str, Any] = {}
    for pair in re.split(r"[\s;,]+", directive.strip()):
        key, _, value = pair.partition("=")
        if key in _NUMBERS and key != "times" and re.fullmatch(r"\d{1,9}", value):
            changes[key] = int(value)
        elif key == "finish_reason" and value:
            changes[key] = value
    return replace(cue, **changes)
