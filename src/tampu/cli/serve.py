"""`tampu serve`: builds the objects, prints the banner, runs the HTTP server until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tampu.cli import options
from tampu.cli.banner import print_banner
from tampu.cli.composition import EngineSettings, load_model
from tampu.core.config import CpuRunnerConfig, EngineConfig
from tampu.core.errors import ConfigError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tampu.api.config import ServerConfig
    from tampu.cli.banner import BannerFacts
    from tampu.cli.composition import LoadedModel
    from tampu.store.token_cache import TokenCache

_DRAIN_SECONDS = 30


def bind(host: str, port: int) -> socket.socket:
    """The listening socket, taken before anything slow happens. Raises ConfigError naming the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError("port", f"cannot listen on {host}:{port} ({error.strerror}): choose another --port") from None
    return listener


@dataclass(frozen=True, slots=True)
class Serving:
    """A running application and how to end it."""

    app: FastAPI
    facts: BannerFacts
    loaded: LoadedModel | None = None

    def close(self) -> None:
        """Free everything. Idempotent."""
        if self.loaded is not None:
            self.loaded.close()


def run_server(serving: Serving, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM; open requests may finish within the drain time."""
    import uvicorn

    config = uvicorn.Config(
        serving.app,
        log_level="warning",
        access_log=False,
        lifespan="on",
        loop="uvloop",
        http="httptools",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_SECONDS,
    )
    # Start-up garbage is permanent: keep the collector from walking it while answers stream.
    gc.collect()
    gc.freeze()
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        serving.close()


def open_token_cache(data_dir: str | None, database_url: str | None) -> TokenCache:
    """The stored API tokens. The database is created on first use."""
    from platformdirs import user_data_path

    from tampu.store.database import open_database
    from tampu.store.token_cache import TokenCache
    from tampu.store.tokens import TokenStore

    folder = Path(data_dir) if data_dir else user_data_path("tampu")
    return TokenCache(TokenStore(open_database(folder, database_url)))


def build_serving(settings: EngineSettings, server: ServerConfig, tokens: TokenCache, started: float) -> Serving:
    """Load the model and build the application over it."""
    from tampu.api.app import create_app
    from tampu.serving.services import Services

    loaded = load_model(settings)
    services = Services(
        generator=loaded.generator, model_card=loaded.card, engine=loaded.engine, metrics=loaded.metrics, tokens=tokens
    )
    try:
        app = create_app(services, server)
        facts = banner_facts(loaded, server, settings, time.perf_counter() - started)
    except BaseException:
        loaded.close()
        raise
    return Serving(app, facts, loaded)


def banner_facts(loaded: LoadedModel, server: ServerConfig, settings: EngineSettings, seconds: float) -> BannerFacts:
    """What the banner says of a loaded model."""
    from tampu.cli.banner import BannerFacts, megabytes, parameter_count
    from tampu.runner.cpu import CpuRunner

    card, runner = loaded.card, loaded.runner
    device = "reference runner (NumPy)"
    kv_bytes = ""
    if isinstance(runner, CpuRunner):
        device = f"{runner.isa}, {runner.num_threads} threads, {runner.activations} activations"
        kv_bytes = f" ({megabytes(runner.kv_cache_bytes)}, {settings.cpu.kv_cache_dtype})"
    notices = list(card.notices)
    if card.is_stand_in:
        notices.append(
            f"{card.name} is answered by {card.weights_name}, not by Llama 3.1 8B. Name other weights with --model."
        )
    rows = (
        ("model", f"{card.name}  answered by  {card.weights_name}"),
        ("file", f"{card.file} ({megabytes(loaded.file_bytes)})"),
        ("parameters", f"{parameter_count(card.num_parameters)}, {card.quantization}"),
        ("context", f"{card.max_model_len:,} tokens a request (the model was made for {card.model_context_len:,})"),
        ("KV cache", f"{card.kv_capacity_tokens:,} tokens over all requests{kv_bytes}"),
        ("computes on", device),
        ("mode", "strict (as the hosted service)" if server.is_strict else "default (superset of the hosted service)"),
        ("address", f"http://{server.host}:{server.port}  (metrics /metrics, routes /docs)"),
        ("ready in", f"{seconds:.2f} s, of which {loaded.load_seconds:.2f} s loading the model"),
    )
    return BannerFacts("Tampu", rows, tuple(notices))


def serve(
    model: options.ModelOption = None,
    host: Annotated[str, typer.Option("--host", envvar="TAMPU_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", envvar="TAMPU_PORT", min=0, max=65535, help="Port to listen on; 0 = any.")
    ] = 8900,
    strict: Annotated[
        bool, typer.Option("--strict", envvar="TAMPU_STRICT", help="Refuse what the hosted service refuses.")
    ] = False,
    threads: options.ThreadsOption = None,
    isa: options.IsaOption = None,
    activations: options.ActivationsOption = "int8",
    kv_cache_dtype: options.KvDtypeOption = "f16",
    kv_cache_mb: options.KvMegabytesOption = None,
    max_model_len: options.MaxModelLenOption = None,
    max_num_seqs: Annotated[
        int, typer.Option("--max-num-seqs", envvar="TAMPU_MAX_NUM_SEQS", min=1, help="Requests computed together.")
    ] = 64,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option(
            "--max-num-batched-tokens", envvar="TAMPU_MAX_NUM_BATCHED_TOKENS", min=1, help="Token budget of one step."
        ),
    ] = 512,
    max_num_waiting: Annotated[
        int, typer.Option("--max-num-waiting", envvar="TAMPU_MAX_NUM_WAITING", min=1, help="Longest queue.")
    ] = 1024,
    prefix_caching: Annotated[
        bool, typer.Option("--prefix-caching/--no-prefix-caching", help="Reuse the KV of prompts seen before.")
    ] = True,
    runner: options.RunnerOption = "cpu",
    data_dir: options.DataDirOption = None,
    database_url: options.DatabaseUrlOption = None,
) -> None:
    """Serve the model over HTTP: Workers AI's REST and binding routes and the OpenAI-compatible ones."""
    from rich.console import Console

    from tampu.api.auth import check_bind
    from tampu.api.config import ServerConfig

    started = time.perf_counter()
    listener = bind(host, port)
    try:
        tokens = open_token_cache(data_dir, database_url)
        check_bind(host, has_tokens=asyncio.run(tokens.has_tokens()))
        server = ServerConfig(host=host, port=listener.getsockname()[1], is_strict=strict)
        settings = EngineSettings(
            model=model,
            runner=runner,
            engine=EngineConfig(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(max_num_batched_tokens, max_num_seqs),
                max_num_waiting=max_num_waiting,
                max_model_len=max_model_len,
                kv_cache_bytes=None if kv_cache_mb is None else kv_cache_mb << 20,
                enable_prefix_caching=prefix_caching,
            ),
            cpu=CpuRunnerConfig(num_threads=threads, isa=isa, activations=activations, kv_cache_dtype=kv_cache_dtype),
        )
        serving = build_serving(settings, server, tokens, started)
        print_banner(serving.facts, Console())
        run_server(serving, listener)
    finally:
        listener.close()
