"""A server without weights: the real engine over the scripted runner, with a tokenizer of bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from tampu.api.app import create_app
from tampu.api.config import ServerConfig
from tampu.core.config import EngineConfig
from tampu.core.request import Request
from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.engine.engine import Engine
from tampu.runner.scripted import ScriptedRunner
from tampu.serving.codec import ChatCodec
from tampu.serving.generator import Generator
from tampu.serving.metrics import Metrics
from tampu.serving.model_card import ModelCard
from tampu.serving.services import Services
from tampu.text.chat_template import chat_template
from tampu.text.tokenizer import Tokenizer, load_tokenizer

MODEL = "@cf/meta/llama-3.1-8b-instruct-fast"
ACCOUNT = "0123456789abcdef0123456789abcdef"
RUN_PATH = f"/client/v4/accounts/{ACCOUNT}/ai/run/{MODEL}"
MAX_MODEL_LEN = 4096


def byte_spelling(byte: int) -> str:
    """GPT-2's visible character for a byte."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    if byte in visible:
        return chr(byte)
    return chr(0x100 + sorted(set(range(256)) - set(visible)).index(byte))


def byte_tokenizer() -> Tokenizer:
    """Token i is byte i; then ChatML's special tokens."""
    specials = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    tokens = (*(byte_spelling(byte) for byte in range(256)), *specials)
    return load_tokenizer(
        TokenizerSpec(
            pre_tokenizer="gpt-2",
            tokens=tokens,
            token_types=(1,) * 256 + (3,) * len(specials),
            eos_token_ids=(257,),
            vocab_size=len(tokens),
        )
    )


TOKENIZER = byte_tokenizer()


def prompt_text(request: Request) -> str:
    """The prompt of an engine request, readable."""
    return TOKENIZER.decode(request.prompt_token_ids)


@dataclass
class Server:
    """One app with a handle on everything beneath it. `say` decides what the model answers."""

    say: Callable[[Request], str] = lambda request: "Hello, world"
    max_model_len: int = MAX_MODEL_LEN
    requests: list[Request] = field(default_factory=list)
    engine: Engine = field(init=False)
    runner: ScriptedRunner = field(init=False)
    generator: Generator = field(init=False)
    services: Services = field(init=False)

    def __post_init__(self) -> None:
        self.runner = ScriptedRunner(self._reply, num_blocks=max(2048, self.max_model_len // 16))
        config = EngineConfig(max_model_len=self.max_model_len)
        self.runner.load()
        self.engine = Engine(self.runner, config)
        metrics = Metrics()
        self.generator = Generator(self.engine, ChatCodec(TOKENIZER, chat_template("chatml")), metrics)
        self.services = Services(
            generator=self.generator,
            model_card=ModelCard(weights_name="scripted", max_model_len=self.max_model_len),
            engine=self.engine,
            metrics=metrics,
        )
        self.generator.start()

    def _reply(self, request: Request) -> list[int]:
        self.requests.append(request)
        return list(self.say(request).encode())

    async def break_while_talking(self) -> None:
        """Say much; a few steps later, fail for ever with a detail that nobody may be told."""
        self.say = lambda request: "word " * 500
        self.runner.step_delay_s = 0.001
        await eventually(lambda: len(self.runner.step_log) > 5)
        self.runner.fail_next_step(RuntimeError("secret detail"))

    def client(self, **settings: Any) -> httpx.AsyncClient:
        """A client of the app with these settings."""
        app = create_app(self.services, ServerConfig(**settings))
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8900")

    def close(self) -> None:
        """Stop everything."""
        self.generator.close()
        self.engine.close()


def frames_of(text: str) -> list[dict[str, Any]]:
    """The JSON frames of a stream; checks that it ends with exactly one `[DONE]`."""
    events = text.split("\n\n")
    assert events.pop() == ""
    assert events.pop() == "data: [DONE]"
    assert all(event.startswith("data: ") for event in events)
    assert "data: [DONE]" not in events
    return [orjson.loads(event.removeprefix("data: ")) for event in events]


async def eventually(is_so: Callable[[], object]) -> None:
    """Wait until something has come true on another thread."""
    while not is_so():  # noqa: ASYNC110  (nobody there could set an asyncio event)
        await asyncio.sleep(0.001)
