"""One sentence for each of our errors, in the words of the command line: flags instead of the fields behind them."""

from __future__ import annotations

from tampu.core.errors import ConfigError, ContextLengthError, InvalidRequestError, TampuError

# What the command line calls a setting. A setting that is not here is named as it is.
FLAGS = {
    "account": "--account",
    "activations": "--activations",
    "allowed_hosts": "--allowed-host",
    "allowed_origins": "--allowed-origin",
    "data_dir": "--data-dir",
    "database_url": "--database-url",
    "default_max_tokens": "--default-max-tokens",
    "expires": "--expires",
    "functions": "--enable-functions",
    "host": "--host",
    "isa": "--isa",
    "kv_cache_bytes": "--kv-cache-mb",
    "kv_cache_dtype": "--kv-cache-dtype",
    "max_model_len": "--max-model-len",
    "max_num_batched_tokens": "--max-num-batched-tokens",
    "max_num_seqs": "--max-num-seqs",
    "max_num_waiting": "--max-num-waiting",
    "name": "--name",
    "num_threads": "--threads",
    "port": "--port",
    "request_timeout_s": "--request-timeout",
    "runner": "--runner",
    "scope": "--scope",
    "token_id": "TOKEN_ID",
}


def sentence(error: TampuError) -> str:
    """What to print: which flag is wrong, why, and what to do."""
    if isinstance(error, ConfigError):
        return f"{FLAGS.get(error.setting, error.setting)}: {error.reason}"
    if isinstance(error, ContextLengthError):
        return (
            f"{error} The prompt has {error.num_prompt_tokens} tokens and --max-tokens is {error.max_tokens}: "
            "shorten one of them, or raise --max-model-len if you set it."
        )
    if isinstance(error, InvalidRequestError) and error.hint:
        return f"{error} {error.hint}"
    return str(error)
