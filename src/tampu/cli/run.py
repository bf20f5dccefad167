"""`tampu run`: one answer in the terminal, streamed as it comes; no server."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from tampu.cli import options
from tampu.core.chat import Message
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.errors import ConfigError, InvalidRequestError
from tampu.core.sampling_params import SamplingParams

if TYPE_CHECKING:
    from tampu.cli.composition import EngineSettings
    from tampu.serving.requests import GenerateRequest


async def _stream_answer(settings: EngineSettings, request: GenerateRequest) -> None:
    """Load, answer, print, close."""
    from tampu.cli.composition import load_model
    from tampu.serving.events import Finished, TextDelta

    loaded = load_model(settings)
    try:
        if loaded.asked_model_len is not None and loaded.asked_model_len > loaded.card.max_model_len:
            typer.secho(f"note: {loaded.window_notice}", err=True, dim=True)
        async with aclosing(loaded.generator.stream(request)) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                elif isinstance(event, Finished):
                    sys.stdout.write("\n")
                    if event.finish_reason == "length":
                        typer.secho(
                            f"(cut after {event.usage.completion_tokens} tokens: raise it with --max-tokens)",
                            err=True, dim=True,
                        )  # fmt: skip
    finally:
        loaded.close()


def run(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads standard input.")],
    model: options.ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template: the prompt as it is.")] = False,
    max_tokens: Annotated[int, options.number("--max-tokens", "-n", least=1, help="Longest answer in tokens.")] = 256,
    temperature: Annotated[
        float, options.number("--temperature", "-t", kind=float, least=0, most=5, help="0 = always the same.")
    ] = 0.6,
    top_p: Annotated[float, options.number("--top-p", kind=float, least=0, most=2, help="1 or more = off.")] = 1.0,
    top_k: Annotated[int, options.number("--top-k", least=0, help="0 = off.")] = 0,
    seed: Annotated[int | None, options.number("--seed", least=0, help="Same seed, same answer.")] = None,
    threads: options.ThreadsOption = None,
    isa: options.IsaOption = None,
    activations: options.ActivationsOption = "int8",
    kv_cache_dtype: options.KvDtypeOption = "f16",
    kv_cache_mb: options.KvMegabytesOption = None,
    max_model_len: options.MaxModelLenOption = None,
    runner: options.RunnerOption = "cpu",
) -> None:
    """Answer one prompt in the terminal, streaming."""
    from tampu.cli.composition import EngineSettings
    from tampu.serving.model_card import PUBLIC_MODEL_NAME
    from tampu.serving.requests import GenerateRequest

    if raw and system is not None:
        raise ConfigError("--system", "a raw prompt has no system message: leave out --system or --raw")
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text.strip():
        raise InvalidRequestError("prompt", "the prompt is empty: say what to ask")
    turns = ((Message("system", system),) if system else ()) + (Message("user", text),)
    request = GenerateRequest(
        model=PUBLIC_MODEL_NAME,
        sampling=SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=max_tokens),
        prompt=text if raw else None,
        messages=None if raw else turns,
        is_raw=raw,
        seed=seed,
    )
    settings = EngineSettings(
        model=model,
        runner=runner,
        engine=EngineConfig(max_model_len=max_model_len, kv_cache_bytes=options.kv_cache_bytes(kv_cache_mb)),
        cpu=CpuRunnerConfig(num_threads=threads, isa=isa, activations=activations, kv_cache_dtype=kv_cache_dtype),
    )
    asyncio.run(_stream_answer(settings, request))
