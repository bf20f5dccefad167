"""A checkpoint, whatever its format: facts, and tensors as stored bytes under their Hugging Face names.

Refuses to know runners and tokenizers: it hands out bytes and a TokenizerSpec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tampu.core.errors import CheckpointError
from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.model.config import ModelConfig
from tampu.model.quantization import dequantize_tensor
from tampu.model.tensor import Tensor


class TensorSource(Protocol):
    """Where the bytes are. Every name was found, measured and checked before the source was handed out."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by Hugging Face name."""

    def read(self, name: str) -> Tensor:
        """The tensor of this name; KeyError when there is none."""

    def release_pages(self) -> None:
        """Give the memory of what was read back to the system; a later read fetches it from the file again."""

    def close(self) -> None:
        """Let go of the files. Idempotent."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened and fully checked model: reading a tensor can no longer meet a wrong shape or a missing byte."""

    path: Path
    name: str  # what the file calls itself, else its file name
    config: ModelConfig
    tokenizer_spec: TokenizerSpec
    quantization: str  # e.g. "Q4_1", "Q4_K_M", "BF16": the form most of the weights have
    num_parameters: int
    file_bytes: int
    chat_template: str  # "llama3" | "chatml" | "none"
    source: TensorSource
    notices: tuple[str, ...] = ()  # sentences the user should see once

    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors; `lm_head.weight` only when the output matrix is stored apart."""
        return tuple(self.source.shapes())

    def tensor(self, name: str) -> Tensor:
        """Stored bytes of one tensor. Raises CheckpointError for an unknown name."""
        if name not in self.source.shapes():
            raise CheckpointError(str(self.path), "no such tensor in this checkpoint", tensor=name)
        return self.source.read(name)

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """Exact stored values of one tensor in its own shape, a fresh array."""
        return dequantize_tensor(self.tensor(name))

    def release_pages(self) -> None:
        """Give the memory of the mapped files back to the system; tensors stay valid and are read again on demand."""
        self.source.release_pages()

    def close(self) -> None:
        """Let go of the files. Tensors read before stay valid."""
        self.source.close()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open and check a GGUF file or a Hugging Face folder. Raises CheckpointError naming file, tensor and reason."""
    path = Path(path)
    try:
        if path.is_dir() and not (path / "config.json").exists():
            path = _only_gguf(path)
        if path.is_dir():
            from tampu.model.safetensors_checkpoint import open_safetensors_folder

            return open_safetensors_folder(path)
        if path.is_file():
            from tampu.model.gguf_checkpoint import open_gguf

            return open_gguf(path)
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read ({error.strerror or error})") from error
    raise CheckpointError(str(path), "no such file or folder")


def _only_gguf(folder: Path) -> Path:
    """The GGUF file of a folder that holds no Hugging Face model, when there is exactly one."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(str(folder), f"holds {len(files)} GGUF files; name one of them")
    raise CheckpointError(str(folder), "holds neither a config.json nor a GGUF file")
