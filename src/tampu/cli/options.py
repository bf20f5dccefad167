"""Options that several commands share, each stated once: name, environment variable, help."""

from __future__ import annotations

from typing import Annotated

import typer

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
    typer.Option("--threads", envvar="TAMPU_THREADS", min=1, help="Compute threads; default one per physical core."),
]
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
    typer.Option(
        "--kv-cache-mb", envvar="TAMPU_KV_CACHE_MB", min=1,
        help="Memory for the KV cache in MiB; default a share of what is free.",
    ),
]  # fmt: skip
MaxModelLenOption = Annotated[
    int | None,
    typer.Option(
        "--max-model-len", envvar="TAMPU_MAX_MODEL_LEN", min=2,
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
