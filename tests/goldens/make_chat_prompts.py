"""Makes chat_prompts.json: prompts rendered by `transformers`, which our templates must equal token for token.

How: `apply_chat_template` of Hugging Face transformers 5.23.0 (jinja2 3.1.6) runs the template text that Meta ships in
`tokenizer_config.json` of Llama-3.1-8B-Instruct, and the one inside SmolLM2-135M-Instruct's GGUF file
(`tokenizer.chat_template`). The template texts are not part of this repository: give their files on the command line.

    python make_chat_prompts.py LLAMA31.jinja SMOLLM2.jinja > chat_prompts.json

The rendering needs no tokenizer; the test encodes both sides with the same vocabulary and compares ids.
"""

import hashlib
import json
import sys
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city — today",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name, e.g. Cusco or 東京"},
                "unit": {"type": "string", "enum": ["°C", "°F"], "description": "unit"},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "", "parameters": {}}}

SYSTEM = {"role": "system", "content": "  You are a llama.\n"}
ASK = {"role": "user", "content": "\nWhat's the weather in Cusco? <|eot_id|> "}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Cusco", "unit": "°C"}}}
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "content": '{"temperature": 12, "sky": "naïve ☁"}'}
PLAIN = [
    [ASK],
    [SYSTEM, ASK],
    [SYSTEM, ASK, {"role": "assistant", "content": " Cold. "}, {"role": "user", "content": "And tomorrow?"}],
    [{"role": "user", "content": ""}],
    [{"role": "assistant", "content": "Hello"}, ASK],
    [SYSTEM, {"role": "developer", "content": "Be brief."}, ASK],
]
WITH_TOOLS = [
    [ASK],
    [SYSTEM, ASK],
    [SYSTEM, ASK, CALL, RESULT],
    [ASK, CALL, RESULT, {"role": "assistant", "content": "12 °C."}, {"role": "user", "content": "Thanks"}],
]


def main() -> None:
    """Render every case of both families to standard output."""
    llama, smollm = (Path(name).read_text() for name in sys.argv[1:3])
    cases = []
    for template, kind, tools, conversations in (
        (llama, "llama3", None, PLAIN),
        (llama, "llama3", [WEATHER], WITH_TOOLS),
        (llama, "llama3", [WEATHER, CLOCK], WITH_TOOLS),
        (llama, "llama3", None, WITH_TOOLS[2:]),
        (smollm, "chatml", None, PLAIN),
    ):
        for messages in conversations:
            rendered, _ = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                add_generation_prompt=True,
                date_string="26 Jul 2024",
                bos_token="<|begin_of_text|>",
            )
            cases.append({"kind": kind, "messages": messages, "tools": tools or [], "prompt": rendered[0]})
    digests = {
        kind: hashlib.sha256(text.encode()).hexdigest() for kind, text in (("llama3", llama), ("chatml", smollm))
    }
    json.dump({"template_sha256": digests, "cases": cases}, sys.stdout, ensure_ascii=False, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
