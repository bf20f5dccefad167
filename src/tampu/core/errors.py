"""Every error a user can meet, as one tree. Asserts guard our invariants; these answer the user.

    TampuError
    ├── InvalidRequestError        a field of a request is wrong (names the field)
    │   ├── ContextLengthError     prompt + max_tokens do not fit the context (counted, never truncated)
    │   └── UnsupportedSchemaError a JSON schema keyword we cannot enforce (names keyword and path)
    ├── UnknownModelError          no such model
    ├── AdapterError               adapter unknown, broken or of another shape
    ├── JsonModeError              constrained output could not be completed
    ├── OverloadedError            the waiting queue is full
    ├── RequestAbortedError        the request was aborted before it finished
    ├── EngineDeadError            the engine failed; sticky, every waiter gets it
    ├── CheckpointError            a model file is wrong (names file, tensor, reason)
    └── ConfigError                a setting or combination of settings is wrong (names the setting)

The protocol layers map these to codes and envelopes; nothing below `api` knows an HTTP status.
"""

from __future__ import annotations


class TampuError(Exception):
    """Base of all errors meant for the user; `str(error)` is one plain sentence."""


class InvalidRequestError(TampuError):
    """A request field has a wrong value.

    `field` is the JSON path as the client wrote it, for example "messages/0/content"; `hint` says what to change.
    """

    def __init__(self, field: str, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.field = field
        self.hint = hint


class ContextLengthError(InvalidRequestError):
    """Prompt and requested output do not fit into the context window. All numbers are tokens, counted."""

    def __init__(self, *, num_prompt_tokens: int, max_tokens: int, max_model_len: int) -> None:
        super().__init__(
            "prompt",
            f"The estimated number of input and maximum output tokens ({num_prompt_tokens + max_tokens}) "
            f"exceeded this model context window limit ({max_model_len}).",
            hint=f"The prompt has {num_prompt_tokens} tokens and max_tokens is {max_tokens}: shorten one of them.",
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.max_model_len = max_model_len


class UnsupportedSchemaError(InvalidRequestError):
    """A JSON schema uses a keyword that cannot be enforced. `path` is a JSON pointer into the schema.

    `reason` is the message without where and about what it is.
    """

    def __init__(
        self, *, keyword: str, path: str, message: str, reason: str = "", field: str = "response_format"
    ) -> None:
        super().__init__(field, message)
        self.keyword = keyword
        self.path = path
        self.reason = reason or message


class UnknownModelError(TampuError):
    """The named model is not served here."""

    def __init__(self, model: str, *, served: str = "") -> None:
        super().__init__(f"No such model {model} or task")
        self.model = model
        self.hint = f"This server answers to {served}." if served else ""


class AdapterError(TampuError):
    """An adapter is unknown, incomplete or does not fit the base model."""


class JsonModeError(TampuError):
    """The constrained answer could not be completed. The scheduler gives the reason only; serving says of what."""


class OverloadedError(TampuError):
    """The waiting queue is full; `retry_after_s` is a guess at when to try again."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RequestAbortedError(TampuError):
    """The request was aborted before it finished."""


class EngineDeadError(TampuError):
    """The engine stopped after an internal failure and must be restarted."""


class CheckpointError(TampuError):
    """A model file is missing, truncated, hostile or of an unsupported kind."""

    def __init__(self, file: str, reason: str, *, tensor: str | None = None) -> None:
        where = f"{file}: tensor {tensor!r}" if tensor is not None else file
        super().__init__(f"{where}: {reason}")
        self.file = file
        self.tensor = tensor
        self.reason = reason


class ConfigError(TampuError):
    """A setting has a wrong value."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(f"{setting}: {message}")
        self.setting = setting
        self.reason = message
