"""`tampu serve`: turns options into settings, builds the application, prints the banner, serves."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tampu.cli import options
from tampu.cli.banner import BannerFacts, megabytes, parameter_count, print_banner
from tampu.cli.composition import EngineSettings, load_embeddings, load_model
from tampu.cli.mock_options import check_mock_options
from tampu.cli.server_process import BuiltServer, bind, join_address, run_server
from tampu.core.config import (
    DEFAULT_NUM_BATCHED_TOKENS,
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    CpuRunnerConfig,
    EngineConfig,
)
from tampu.core.errors import ConfigError

if TYPE_CHECKING:
    from tampu.api.auth import AccessPolicy
    from tampu.api.config import ServerConfig
    from tampu.cli.composition import LoadedModel
    from tampu.serving.embedder import EmbeddingCard
    from tampu.serving.services import TextGenerator
    from tampu.store.token_cache import TokenCache


def open_token_cache(data_dir: str | None, database_url: str | None) -> TokenCache:
    """The stored API tokens. The database is created on first use."""
    from platformdirs import user_data_path

    from tampu.store.database import open_database
    from tampu.store.token_cache import TokenCache
    from tampu.store.tokens import TokenStore

    folder = Path(data_dir) if data_dir else user_data_path("tampu")
    return TokenCache(TokenStore(open_database(folder, database_url)))


def build_server(
    settings: EngineSettings,
    server: ServerConfig,
    policy: AccessPolicy,
    tokens: TokenCache | None,
    embedding_model: str | None,
    started: float,
) -> BuiltServer:
    """Load the models and build the application over them."""
    from tampu.api.app import create_app
    from tampu.api.auth import AccessControl
    from tampu.serving.services import Services

    with ExitStack() as cleanup:
        loaded = load_model(settings)
        cleanup.callback(loaded.close)
        generator: TextGenerator = loaded.generator
        if server.runs_functions:
            generator = _with_functions(generator, cleanup)
        embeddings = load_embeddings(embedding_model, settings)
        if embeddings is not None:
            cleanup.callback(embeddings.close)
        services = Services(
            generator=generator,
            model_card=loaded.card,
            engine=loaded.engine,
            metrics=loaded.metrics,
            embeddings=embeddings,
            tokens=tokens,
        )
        app = create_app(services, server, access=AccessControl(policy, tokens))
        card = embeddings.card if embeddings is not None else None
        facts = banner_facts(loaded, card, server, time.perf_counter() - started)
        return BuiltServer(app, facts, cleanup.pop_all().close, loaded.engine.drain)


def build_mock_server(
    script: Path | None, server: ServerConfig, policy: AccessPolicy, tokens: TokenCache | None
) -> BuiltServer:
    """The same wire with no model: nothing of the engine is imported."""
    from tampu.api.app import create_app
    from tampu.api.auth import AccessControl
    from tampu.api.errors import KINDS
    from tampu.serving.mock import mock_services
    from tampu.serving.mock_script import Script, load_script

    services = mock_services(load_script(script, KINDS) if script is not None else Script(KINDS))
    rows = (("answers", str(script) if script else "made up, deterministic"), _address(server))
    facts = BannerFacts("Tampu mock", rows, services.model_card.notices)
    with ExitStack() as cleanup:
        if server.runs_functions:
            generator = _with_functions(services.generator, cleanup)
            services = replace(services, generator=generator)
        app = create_app(services, server, access=AccessControl(policy, tokens))
        return BuiltServer(app, facts, cleanup.pop_all().close)


def _with_functions(generator: TextGenerator, cleanup: ExitStack) -> TextGenerator:
    """The generator that also runs `functions`, in a sandbox that starts with the first call."""
    from tampu.sandbox.sandbox import Sandbox
    from tampu.serving.function_rounds import FunctionRounds

    sandbox = Sandbox()
    cleanup.callback(sandbox.close)
    return FunctionRounds(generator, sandbox)


def banner_facts(
    loaded: LoadedModel, embedding: EmbeddingCard | None, server: ServerConfig, seconds: float
) -> BannerFacts:
    """What the banner says of the loaded models."""
    card, facts = loaded.card, loaded.runner_facts
    notices = list(card.notices)
    if card.is_stand_in:
        notices.append(
            f"{card.name} is answered by {card.weights_name}, not by Llama 3.1 8B. Name other weights with --model."
        )
    if loaded.window_notice is not None:
        notices.append(loaded.window_notice)
    rows = (
        ("model", f"{card.name}  answered by  {card.weights_name}"),
        ("file", f"{card.file} ({megabytes(loaded.file_bytes)})"),
        ("parameters", f"{parameter_count(card.num_parameters)}, {card.quantization}"),
        ("context", f"{card.max_model_len:,} tokens a request (the model was made for {card.model_context_len:,})"),
        ("KV cache", f"{card.kv_capacity_tokens:,} tokens over all requests{facts.kv_cache}"),
        ("computes on", facts.device),
        ("embeddings", f"{embedding.name}  answered by  {embedding.weights_name}" if embedding else "none"),
        ("mode", "strict (as the hosted service)" if server.is_strict else "default (superset of the hosted service)"),
        _address(server),
        ("ready in", f"{seconds:.2f} s, of which {loaded.load_seconds:.2f} s loading the model"),
    )
    return BannerFacts("Tampu", rows, tuple(notices))


def step_budget(max_num_batched_tokens: int | None, max_num_seqs: int) -> int:
    """The token budget of one step: the one that was asked for, or the default, raised to hold a full batch."""
    if max_num_batched_tokens is None:
        return max(DEFAULT_NUM_BATCHED_TOKENS, max_num_seqs)
    if max_num_batched_tokens < max_num_seqs:
        raise ConfigError(
            "max_num_batched_tokens",
            f"{max_num_batched_tokens} tokens a step do not hold {max_num_seqs} requests: "
            "give it more, or lower --max-num-seqs",
        )
    return max_num_batched_tokens


def _address(server: ServerConfig) -> tuple[str, str]:
    return "address", f"http://{join_address(server.host, server.port)}  (metrics at /metrics, routes at /docs)"


def serve(
    context: typer.Context,
    model: options.ModelOption = None,
    embedding_model: Annotated[
        str | None,
        typer.Option(
            "--embedding-model",
            envvar="TAMPU_EMBEDDING_MODEL",
            help="Folder of a BERT-family encoder; default the bundled all-MiniLM-L6-v2.",
        ),
    ] = None,
    host: Annotated[str, typer.Option("--host", envvar="TAMPU_HOST", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        options.number("--port", "-p", least=0, most=65535, envvar="TAMPU_PORT", help="Port to listen on; 0 = any."),
    ] = 8900,
    mock: Annotated[
        bool,
        typer.Option("--mock", envvar="TAMPU_MOCK", help="No model: deterministic or scripted answers, for tests."),
    ] = False,
    mock_script: Annotated[
        Path | None,
        typer.Option(
            "--mock-script", envvar="TAMPU_MOCK_SCRIPT", help="JSON or YAML file of replies and faults; implies --mock."
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", envvar="TAMPU_STRICT", help="Refuse what the hosted service refuses.")
    ] = False,
    default_max_tokens: Annotated[
        int,
        options.number(
            "--default-max-tokens",
            least=1,
            envvar="TAMPU_DEFAULT_MAX_TOKENS",
            help="max_tokens of a request that names none.",
        ),
    ] = 256,
    pad_streams: Annotated[
        bool,
        typer.Option(
            "--pad-streams",
            envvar="TAMPU_PAD_STREAMS",
            help="Random padding in native stream frames, against length side channels.",
        ),
    ] = False,
    null_response: Annotated[
        bool,
        typer.Option(
            "--null-response", envvar="TAMPU_NULL_RESPONSE", help='`response: null` beside tool calls instead of "".'
        ),
    ] = False,
    ignore_image: Annotated[
        bool,
        typer.Option(
            "--ignore-image", envvar="TAMPU_IGNORE_IMAGE", help="Drop `image` with a note instead of refusing it."
        ),
    ] = False,
    functions: Annotated[
        bool | None,
        typer.Option(
            "--enable-functions/--disable-functions",
            envvar="TAMPU_ENABLE_FUNCTIONS",
            help="Run the JavaScript of `functions` in the sandbox; by default only on loopback binds.",
        ),
    ] = None,
    request_timeout: Annotated[
        float | None,
        options.number(
            "--request-timeout",
            kind=float,
            least=0.001,
            envvar="TAMPU_REQUEST_TIMEOUT",
            help="Seconds an answer may take; default no limit.",
        ),
    ] = None,
    drain_timeout: Annotated[
        float,
        options.number(
            "--drain-timeout",
            kind=float,
            least=0,
            most=3600,
            envvar="TAMPU_DRAIN_TIMEOUT",
            help="Seconds that open requests may take after SIGTERM or Ctrl-C; then they end with an error.",
        ),
    ] = 30,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            envvar="TAMPU_ALLOWED_HOST",
            help="Further name this server is reached under; may be given twice.",
        ),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-origin",
            envvar="TAMPU_ALLOWED_ORIGIN",
            help="Web page that may call: scheme://host[:port]; may be given twice.",
        ),
    ] = None,
    threads: options.ThreadsOption = None,
    isa: options.IsaOption = None,
    activations: options.ActivationsOption = "int8",
    kv_cache_dtype: options.KvDtypeOption = "f16",
    kv_cache_mb: options.KvMegabytesOption = None,
    max_model_len: options.MaxModelLenOption = None,
    max_num_seqs: Annotated[
        int,
        options.number(
            "--max-num-seqs",
            least=1,
            most=MAX_NUM_SEQS,
            envvar="TAMPU_MAX_NUM_SEQS",
            help="Requests computed together.",
        ),
    ] = 64,
    max_num_batched_tokens: Annotated[
        int | None,
        options.number(
            "--max-num-batched-tokens",
            least=1,
            most=MAX_NUM_BATCHED_TOKENS,
            envvar="TAMPU_MAX_NUM_BATCHED_TOKENS",
            help=f"Token budget of one step; default {DEFAULT_NUM_BATCHED_TOKENS}, and at least --max-num-seqs.",
        ),
    ] = None,
    max_num_waiting: Annotated[
        int, options.number("--max-num-waiting", least=1, envvar="TAMPU_MAX_NUM_WAITING", help="Longest queue.")
    ] = 1024,
    prefix_caching: Annotated[
        bool,
        typer.Option(
            "--prefix-caching/--no-prefix-caching",
            envvar="TAMPU_PREFIX_CACHING",
            help="Reuse the KV of prompts seen before.",
        ),
    ] = True,
    runner: options.RunnerOption = "cpu",
    data_dir: options.DataDirOption = None,
    database_url: options.DatabaseUrlOption = None,
) -> None:
    """Serve the model over HTTP: Workers AI's REST and binding routes and the OpenAI-compatible ones."""
    started = time.perf_counter()
    mock = mock or mock_script is not None
    listener = bind(host, port)
    gc.disable()  # nothing made during start-up is garbage; `run_server` enables it again
    try:
        from rich.console import Console

        from tampu.api.auth import AccessPolicy, check_bind, is_loopback_host
        from tampu.api.config import ServerConfig

        if mock:
            check_mock_options(context, asks_for_tokens=not is_loopback_host(host))
        server = ServerConfig(
            host=host,
            port=listener.getsockname()[1],
            is_strict=strict,
            default_max_tokens=default_max_tokens,
            is_stream_padded=pad_streams,
            has_null_response_with_tool_calls=null_response,
            is_image_ignored=ignore_image,
            enables_functions=functions,
            request_timeout_s=request_timeout,
        )
        policy = AccessPolicy(
            bind_host=host,
            is_strict=strict,
            allowed_hosts=tuple(allowed_host or ()),
            allowed_origins=tuple(allowed_origin or ()),
        )
        # A mock on loopback needs no tokens, and starts faster without a database.
        tokens = None if mock and is_loopback_host(host) else open_token_cache(data_dir, database_url)
        check_bind(host, has_tokens=tokens is not None and asyncio.run(tokens.has_tokens()))
        if mock:
            built = build_mock_server(mock_script, server, policy, tokens)
        else:
            settings = EngineSettings(
                model=model,
                runner=runner,
                engine=EngineConfig(
                    max_num_seqs=max_num_seqs,
                    max_num_batched_tokens=step_budget(max_num_batched_tokens, max_num_seqs),
                    max_num_waiting=max_num_waiting,
                    max_model_len=max_model_len,
                    kv_cache_bytes=options.kv_cache_bytes(kv_cache_mb),
                    enable_prefix_caching=prefix_caching,
                ),
                cpu=CpuRunnerConfig(
                    num_threads=threads, isa=isa, activations=activations, kv_cache_dtype=kv_cache_dtype
                ),
            )
            built = build_server(settings, server, policy, tokens, embedding_model, started)
        print_banner(built.facts, Console())
        run_server(built, listener, drain_timeout)
    finally:
        gc.enable()
        listener.close()
