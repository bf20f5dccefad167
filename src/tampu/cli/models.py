"""`tampu models`: which weights can answer on this machine."""

from __future__ import annotations

from pathlib import Path

import typer

from tampu.core.errors import CheckpointError


def _hub_models() -> list[tuple[str, Path]]:
    """Llama-architecture candidates in the local hub cache: (name to pass to --model, path)."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        cache = scan_cache_dir()
    except CacheNotFound:
        return []
    found: list[tuple[str, Path]] = []
    for repo in sorted(cache.repos, key=lambda r: str(r.repo_id)):
        if repo.repo_type != "model":
            continue
        for revision in repo.revisions:
            for file in sorted(revision.files, key=lambda f: str(f.file_name)):
                if file.file_name.endswith(".gguf"):
                    found.append((f"{repo.repo_id}:{file.file_name}", Path(file.file_path)))
                elif file.file_name == "config.json" and Path(file.file_path).parent == Path(revision.snapshot_path):
                    found.append((str(repo.repo_id), Path(revision.snapshot_path)))
    return found


def models(
    path: str = typer.Argument("", help="A GGUF file or Hugging Face folder to describe as well."),
) -> None:
    """List the weights that are on this machine: bundled, in the hub cache, or at PATH."""
    from rich.table import Table

    from tampu.cli.banner import print_table
    from tampu.cli.composition import weights_name
    from tampu.model.bundled import bundled_model_path
    from tampu.model.checkpoint import open_checkpoint

    candidates: list[tuple[str, Path]] = []
    bundled = bundled_model_path()
    if bundled is not None:
        candidates.append(("(bundled, the default)", bundled))
    if path:
        candidates.append((path, Path(path)))
    candidates += _hub_models()
    table = Table("--model", "weights", "parameters", "quantisation", "context", "file size", box=None, pad_edge=False)
    for name, location in candidates:
        try:
            checkpoint = open_checkpoint(location)
        except CheckpointError as error:
            if path and name == path:
                raise
            table.add_row(name, f"not usable: {error.reason}", "", "", "", "")
            continue
        table.add_row(
            name,
            weights_name(checkpoint),
            f"{checkpoint.num_parameters / 1e6:.1f} M",
            checkpoint.quantization,
            str(checkpoint.config.max_position_embeddings),
            f"{checkpoint.file_bytes / 1e6:.0f} MB",
        )
        checkpoint.close()
    if not candidates:
        typer.echo("No weights on this machine. Install the bundled ones with: make serve")
        return
    print_table(table)
