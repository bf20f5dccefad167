"""Options that several commands share, each stated once: name, environment variable, help."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from tampu.core.config import MAX_NUM_THREADS


def number(
    *flags: str, kind: type[int] | type[float] = int, least: float, most: float | None = None, **more: Any
) -> Any:
    """An option that is a number, `least` and `most` included. Its refusal names the value; typer's own does not."""
    return typer.Option(*flags, min=least, max=most, parser=number_parser(kind, least, most), **more)


def number_parser(kind: type[int] | type[float], least: float, most: float | None) -> Callable[[Any], int | float]:
    """Turns what was typed into a number between the bounds, or refuses it in a sentence."""
    word = "whole number" if kind is int else "number"
    wanted = f"a {word} from {least} to {most}" if most is not None else f"a {word} of at least {least}"
    highest = sys.float_info.max if most is None else most  # nobody means infinity

    def parse(text: Any) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan  # is in no range
        if least <= value <= highest:
            return value
        raise typer.BadParameter(f"{str(text)!r} is not {wanted}")

    return parse


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", envvar="TAMPU_MODEL",
        help="GGUF file, Hugging Face folder, or hub repository (org/name or org/name:file.gguf). "
        "Without it, the bundled SmolLM2-135M-Instruct answers.",
    ),
]  # fmt: skip
ThreadsOption = Annotated[
    int | None,
    number(
        "--threads", least=1, most=MAX_NUM_THREADS, envvar="TAMPU_THREADS",
        help="Compute threads; default one per physical core.",
    ),
]  # fmt: skip
IsaOption = Annotated[
    str | None,
    typer.Option(
        "--isa",
        envvar="TAMPU_ISA",
        help="Force an instruction set: portable, dotprod (ARM64), avx2, avxvnni or avx512.",
    ),
]
ActivationsOption = Annotated[
    str,
    typer.Option(
        "--activations", envvar="TAMPU_ACTIVATIONS",
        help="Activations of the linear layers: int8 (fast) or f32 (exact, slow).",
    ),
]  # fmt: skip
KvDtypeOption = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype", envvar="TAMPU_KV_CACHE_DTYPE",
        help="KV cache precision: f16, or q8 (8 bits, room for nearly twice the tokens).",
    ),
]  # fmt: skip
KvMegabytesOption = Annotated[
    int | None,
    number(
        "--kv-cache-mb", envvar="TAMPU_KV_CACHE_MB", least=1,
        help="Memory for the KV cache in MiB; default a share of what is free.",
    ),
]  # fmt: skip


def kv_cache_bytes(megabytes: int | None) -> int | None:
    """What `--kv-cache-mb` means."""
    return None if megabytes is None else megabytes << 20


MaxModelLenOption = Annotated[
    int | None,
    number(
        "--max-model-len", envvar="TAMPU_MAX_MODEL_LEN", least=2,
        help="Longest prompt plus answer in tokens; default what the model and the KV cache allow.",
    ),
]  # fmt: skip
RunnerOption = Annotated[
    str,
    typer.Option(
        "--runner", envvar="TAMPU_RUNNER",
        help="cpu (native) or reference (plain NumPy, slow: the oracle the native engine is tested against).",
    ),
]  # fmt: skip
DataDirOption = Annotated[
    str | None,
    typer.Option("--data-dir", envvar="TAMPU_DATA_DIR", help="Folder for state; default the user data folder."),
]
DatabaseUrlOption = Annotated[
    str | None,
    typer.Option("--database-url", envvar="TAMPU_DATABASE_URL", help="Database instead of SQLite in the data folder."),
]
