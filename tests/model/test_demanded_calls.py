"""The bundled model, which rambles, under a demand for tool calls and few tokens: every answer is valid calls."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tampu.core.chat import Message, ToolSpec
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.output import FinishReason
from tampu.core.sampling_params import SamplingParams
from tampu.engine.engine import Engine
from tampu.model.checkpoint import open_checkpoint
from tampu.runner.cpu import CpuRunner
from tampu.serving.answers import Answer
from tampu.serving.codec import ChatCodec
from tampu.serving.generator import Generator
from tampu.serving.metrics import Metrics
from tampu.serving.requests import GenerateRequest, ToolChoice
from tampu.text.chat_template import chat_template
from tampu.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.bundled

NUM_REQUESTS = 200
AT_ONCE = 16
ENGINE = EngineConfig(max_num_seqs=AT_ONCE, kv_cache_bytes=128 << 20)


def tool(name: str, required: list[str], **properties: Any) -> ToolSpec:
    return ToolSpec(name, "", {"type": "object", "properties": properties, "required": required})


TEXT = {"type": "string"}
TOOLS = (
    tool("get_weather", ["city"], city=TEXT, unit={"type": "string", "enum": ["c", "f"]}),
    tool("add", ["a", "b"], a={"type": "number"}, b={"type": "number"}),
    tool("send_mail", ["to", "subject"], to=TEXT, subject=TEXT, urgent={"type": "boolean"}),
    tool(
        "book",
        ["people", "tags"],
        people={"type": "integer", "minimum": 1, "maximum": 12},
        tags={"type": "array", "items": TEXT},
    ),
)
SETS = [tools for size in (1, 2) for tools in itertools.combinations(TOOLS, size)]
CITIES = ["Paris", "Oslo", "Lima", "Quito", "Cairo", "Delhi", "Tokyo", "Turin", "Accra", "Hanoi"]


@pytest.fixture(scope="module")
def generator(bundled_model: Path) -> Iterator[Generator]:
    with ExitStack() as cleanup:
        checkpoint = open_checkpoint(bundled_model)
        cleanup.callback(checkpoint.close)
        runner = CpuRunner(checkpoint, ENGINE, CpuRunnerConfig())
        runner.load()
        config = checkpoint.config
        engine = Engine(runner, ENGINE, config.max_position_embeddings, vocab_size=config.vocab_size)
        cleanup.callback(engine.close)
        codec = ChatCodec(load_tokenizer(checkpoint.tokenizer_spec), chat_template(checkpoint.chat_template))
        generator = Generator(engine, codec, Metrics())
        cleanup.callback(generator.close)
        generator.start()
        yield generator


def demand(number: int) -> GenerateRequest:
    city = CITIES[number % len(CITIES)]
    return GenerateRequest(
        model="m",
        messages=(Message("user", f"Request {number}: something about {city} for {2 + number % 7} people."),),
        tools=SETS[number % len(SETS)],
        tool_choice=ToolChoice("required"),
        sampling=SamplingParams(max_tokens=50 + number % 40, temperature=(0.0, 0.6, 1.0)[number % 3]),
        seed=number,
    )


async def test_two_hundred_demands_are_two_hundred_answers_of_valid_calls(generator: Generator) -> None:
    places = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int) -> Answer:
        async with places:
            (answer,) = await generator.complete(demand(number))
        return answer

    answers = await asyncio.gather(*(ask(number) for number in range(NUM_REQUESTS)))
    schemas = {spec.name: spec.parameters for spec in TOOLS}
    for number, answer in enumerate(answers):
        assert answer.tool_calls, (number, answer)
        assert answer.text == ""
        assert answer.finish_reason in (FinishReason.TOOL_CALLS, FinishReason.LENGTH)
        for call in answer.tool_calls:
            jsonschema.Draft202012Validator(schemas[call.name]).validate(call.arguments)
    assert {answer.finish_reason for answer in answers} == {FinishReason.TOOL_CALLS, FinishReason.LENGTH}
