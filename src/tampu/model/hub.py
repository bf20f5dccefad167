"""Turns the MODEL argument into a path: a file or folder as it is, or a repository pulled from the Hugging Face hub.

Only safetensors, GGUF and JSON files are ever pulled: nothing here can bring executable content into the cache.
"""

from __future__ import annotations

import re
from pathlib import Path

from tampu.core.errors import CheckpointError

# One slash, as the hub has it; optionally a file of the repository.
_REPOSITORY = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?::(?P<file>[\w./-]+))?", re.ASCII)
_FOLDER_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "model*.safetensors",
)


def resolve_model(model: str, *, cache_dir: Path | None = None) -> Path:
    """The local file or folder `model` names. Raises CheckpointError that says what to do.

    An existing path wins. Otherwise `org/name` is a repository with a Hugging Face folder or one GGUF file, and
    `org/name:file.gguf` a file of it; both come from the hub's cache when they are there. None = the hub's own cache.
    """
    path = Path(model).expanduser()
    if model and path.exists():  # pathlib takes the empty string for the current folder
        return path
    match = _REPOSITORY.fullmatch(model)
    if match is None or model.startswith((".", "~")) or match["repository"].endswith((".gguf", ".safetensors")):
        raise CheckpointError(
            model, "is not an existing file or folder, nor a hub repository written as org/name or org/name:file.gguf"
        )
    repository, file = match["repository"], match["file"]
    if file is not None:
        if not file.endswith(".gguf") or ".." in file:
            raise CheckpointError(model, f"{file!r} is not a GGUF file; write org/name:file.gguf, or org/name")
        return _pull_file(repository, file, cache_dir)
    folder = _pull_folder(repository, cache_dir)
    if (folder / "config.json").exists() and any(folder.glob("model*.safetensors*")):
        return folder
    return _pull_only_gguf(repository, folder, cache_dir)


def _pull_folder(repository: str, cache_dir: Path | None) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=list(_FOLDER_FILES), cache_dir=cache_dir)
        )
    except Exception as error:
        raise _explain(repository, error) from error


def _pull_file(repository: str, file: str, cache_dir: Path | None) -> Path:
    import huggingface_hub

    try:
        # Asked for a file that is not in the cache, the library tries an unreachable hub six times and logs every one.
        from_cache = not _is_hub_reached(repository, file)
        return Path(huggingface_hub.hf_hub_download(repository, file, cache_dir=cache_dir, local_files_only=from_cache))
    except Exception as error:
        raise _explain(f"{repository}:{file}", error) from error


def _is_hub_reached(repository: str, file: str) -> bool:
    """Whether the hub answers at all, be it with a refusal: one try."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(repository, file))
    except (errors.HfHubHTTPError, errors.HFValidationError):
        return True
    except Exception:
        return False
    return True


def _pull_only_gguf(repository: str, folder: Path, cache_dir: Path | None) -> Path:
    """The repository has no Hugging Face folder: take its GGUF file when there is exactly one."""
    import huggingface_hub

    try:
        names = [name for name in huggingface_hub.list_repo_files(repository) if name.endswith(".gguf")]
    except Exception as error:
        # Offline: what was pulled before is as good.
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.gguf"))]
        if len(names) != 1:
            raise _explain(repository, error) from error
    if not names:
        raise CheckpointError(repository, "the hub repository holds neither safetensors with a config.json nor GGUF")
    if len(names) > 1:
        shown = ", ".join(sorted(names)[:12]) + (", ..." if len(names) > 12 else "")
        raise CheckpointError(repository, f"holds several GGUF files; name one as {repository}:FILE ({shown})")
    return _pull_file(repository, names[0], cache_dir)


def _explain(what: str, error: Exception) -> CheckpointError:
    """One sentence for every way a pull can fail."""
    from huggingface_hub import errors

    repository = what.partition(":")[0]
    if isinstance(error, errors.GatedRepoError):
        reason = f"is gated: accept its licence at https://huggingface.co/{repository}, then set HF_TOKEN"
    elif isinstance(error, errors.RepositoryNotFoundError):
        reason = "is neither a local path nor a repository on the hub (a private one needs HF_TOKEN)"
    elif isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        reason = (
            "is no local path, is not in the hub's cache, and the hub cannot be reached; connect once, or give a path"
        )
    elif isinstance(error, errors.EntryNotFoundError):
        reason = "the hub repository has no such file"
    elif isinstance(error, errors.HFValidationError):
        reason = "is not a valid hub repository name"
    else:
        detail = str(error).strip().splitlines()
        reason = f"cannot be pulled from the hub ({type(error).__name__}: {detail[0] if detail else 'no details'})"
    return CheckpointError(what, reason)
