"""Which options of `tampu serve` mean nothing to the mock. They are refused: whoever gives one expects something."""

from __future__ import annotations

import typer

from tampu.core.errors import ConfigError

# They configure models and the engine, of which a mock has none.
MODEL_OPTIONS = frozenset({
    "model", "embedding_model", "threads", "isa", "activations", "kv_cache_dtype", "kv_cache_mb", "max_model_len",
    "max_num_seqs", "max_num_batched_tokens", "max_num_waiting", "prefix_caching", "runner",
})  # fmt: skip
TOKEN_OPTIONS = frozenset({"data_dir", "database_url"})


def check_mock_options(context: typer.Context, *, asks_for_tokens: bool) -> None:
    """Refuse options without effect that stand on the command line; the environment may be set for another server.

    Raises:
        ConfigError: naming them.
    """
    given = [
        parameter
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    ]
    for names, reason in (
        (MODEL_OPTIONS, "a mock loads no model"),
        (frozenset() if asks_for_tokens else TOKEN_OPTIONS, "a mock on this machine's own address asks for no token"),
    ):
        idle = [parameter.opts[0] for parameter in given if parameter.name in names]
        if idle:
            advice = "leave it out" if len(idle) == 1 else "leave them out"
            raise ConfigError(
                ", ".join(idle),
                f"without effect here, because {reason}: {advice}, or serve without --mock and --mock-script",
            )
