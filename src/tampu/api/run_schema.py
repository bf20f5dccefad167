"""The model page's input and output schemas as data, in the hosted service's key order. Knows nothing of validation.

The order matters: the validator reports the first problem it meets, and the page itself sorts the keys.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

MAX_TEXT_UNITS = 131_072  # longest prompt and longest message content, in UTF-16 code units
DEFAULT_MAX_TOKENS = 256
DEFAULT_TEMPERATURE = 0.6


def _penalty(description: str) -> Schema:
    return {"type": "number", "minimum": 0, "maximum": 2, "description": description}


def _image() -> Schema:
    return {
        "oneOf": [
            {
                "type": "array",
                "description": "An array of integers that represent the image data constrained to 8-bit unsigned "
                "integer values",
                "items": {"type": "number", "description": "A value between 0 and 255"},
            },
            {"type": "string", "format": "binary", "description": "Binary string representing the image contents."},
        ]
    }


def _sampling(stream_description: str, top_p_description: str) -> Schema:
    return {
        "stream": {"type": "boolean", "default": False, "description": stream_description},
        "max_tokens": {
            "type": "integer",
            "default": DEFAULT_MAX_TOKENS,
            "description": "The maximum number of tokens to generate in the response.",
        },
        "temperature": {
            "type": "number",
            "default": DEFAULT_TEMPERATURE,
            "minimum": 0,
            "maximum": 5,
            "description": "Controls the randomness of the output; higher values produce more random results.",
        },
        "top_p": {"type": "number", "minimum": 0, "maximum": 2, "description": top_p_description},
        "top_k": {
            "type": "integer",
            "minimum": 1,
            "maximum": 50,
            "description": "Limits the AI to choose from the top 'k' most probable words. Lower values make responses "
            "more focused; higher values introduce more variety and potential surprises.",
        },
        "seed": {
            "type": "integer",
            "minimum": 1,
            "maximum": 9999999999,
            "description": "Random seed for reproducibility of the generation.",
        },
        "repetition_penalty": _penalty("Penalty for repeated tokens; higher values discourage repetition."),
        "frequency_penalty": _penalty("Decreases the likelihood of the model repeating the same lines verbatim."),
        "presence_penalty": _penalty("Increases the likelihood of the model introducing new topics."),
    }


def _tool_parameters(description: str) -> Schema:
    return {
        "type": "object",
        "description": description,
        "required": ["type", "properties"],
        "properties": {
            "type": {"type": "string", "description": "The type of the parameters object (usually 'object')."},
            "required": {
                "type": "array",
                "description": "List of required parameter names.",
                "items": {"type": "string"},
            },
            "properties": {
                "type": "object",
                "description": "Definitions of each parameter.",
                "additionalProperties": {
                    "type": "object",
                    "required": ["type", "description"],
                    "properties": {
                        "type": {"type": "string", "description": "The data type of the parameter."},
                        "description": {"type": "string", "description": "A description of the expected parameter."},
                    },
                },
            },
        },
    }


def _flat_tool() -> Schema:
    return {
        "required": ["name", "description", "parameters"],
        "properties": {
            "name": {"type": "string", "description": "The name of the tool. More descriptive the better."},
            "description": {"type": "string", "description": "A brief description of what the tool does."},
            "parameters": _tool_parameters("Schema defining the parameters accepted by the tool."),
        },
    }


def _nested_tool() -> Schema:
    return {
        "required": ["type", "function"],
        "properties": {
            "type": {"type": "string", "description": "Specifies the type of tool (e.g., 'function')."},
            "function": {
                "type": "object",
                "description": "Details of the function tool.",
                "required": ["name", "description", "parameters"],
                "properties": {
                    "name": {"type": "string", "description": "The name of the function."},
                    "description": {"type": "string", "description": "A brief description of what the function does."},
                    "parameters": _tool_parameters("Schema defining the parameters accepted by the function."),
                },
            },
        },
    }


def _prompt_branch() -> Schema:
    return {
        "title": "Prompt",
        "properties": {
            "prompt": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_TEXT_UNITS,
                "description": "The input text prompt for the model to generate a response.",
            },
            "image": _image(),
            "raw": {
                "type": "boolean",
                "default": False,
                "description": "If true, a chat template is not applied and you must adhere to the specific model's "
                "expected formatting.",
            },
            **_sampling(
                "If true, the response will be streamed back incrementally using SSE, Server Sent Events.",
                "Adjusts the creativity of the AI's responses by controlling how many possible words it considers. "
                "Lower values make outputs more predictable; higher values allow for more varied and creative "
                "responses.",
            ),
            "lora": {
                "type": "string",
                "description": "Name of the LoRA (Low-Rank Adaptation) model to fine-tune the base model.",
            },
        },
        "required": ["prompt"],
    }


def _messages_branch() -> Schema:
    return {
        "title": "Messages",
        "properties": {
            "messages": {
                "type": "array",
                "description": "An array of message objects representing the conversation history.",
                "items": {
                    "type": "object",
                    "required": ["role", "content"],
                    "properties": {
                        "role": {
                            "type": "string",
                            "description": "The role of the message sender (e.g., 'user', 'assistant', 'system', "
                            "'tool').",
                        },
                        "content": {
                            "type": "string",
                            "maxLength": MAX_TEXT_UNITS,
                            "description": "The content of the message as a string.",
                        },
                    },
                },
            },
            "image": _image(),
            "functions": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "code"],
                    "properties": {"name": {"type": "string"}, "code": {"type": "string"}},
                },
            },
            "tools": {
                "type": "array",
                "description": "A list of tools available for the assistant to use.",
                "items": {"type": "object", "oneOf": [_flat_tool(), _nested_tool()]},
            },
            **_sampling(
                "If true, the response will be streamed back incrementally.",
                "Controls the creativity of the AI's responses by adjusting how many possible words it considers. "
                "Lower values make outputs more predictable; higher values allow for more varied and creative "
                "responses.",
            ),
        },
        "required": ["messages"],
    }


INPUT_SCHEMA: Schema = {"type": "object", "oneOf": [_prompt_branch(), _messages_branch()]}

OUTPUT_SCHEMA: Schema = {
    "oneOf": [
        {
            "type": "object",
            "contentType": "application/json",
            "properties": {
                "response": {"type": "string", "description": "The generated text response from the model"},
                "tool_calls": {
                    "type": "array",
                    "description": "An array of tool calls requests made during the response generation",
                    "items": {
                        "type": "object",
                        "properties": {
                            "arguments": {
                                "type": "object",
                                "description": "The arguments passed to be passed to the tool call request",
                            },
                            "name": {"type": "string", "description": "The name of the tool to be called"},
                        },
                    },
                },
            },
        },
        {"type": "string", "contentType": "text/event-stream", "format": "binary"},
    ]
}
