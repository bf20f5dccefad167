"""A Llama in a Hugging Face folder: config.json, generation_config.json, tokenizer.json, safetensors (sharded or not).

Pickled weights are refused to be known: a folder without safetensors is an error that says so.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tampu.core.errors import CheckpointError
from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.model.checkpoint import Checkpoint
from tampu.model.config import ModelConfig, check_config
from tampu.model.hf_config import Vocabulary, read_json_file, read_model_config, read_vocabulary
from tampu.model.llama_tensors import EMBEDDING, LM_HEAD, check_tensors
from tampu.model.safetensors_header import SafetensorsEntry, read_safetensors_header
from tampu.model.tensor import Tensor
from tampu.model.vocabulary import chat_template_kind

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MAX_SHARDS = 4096
# Buffers of old exports that are computed here.
_IGNORED_SUFFIX = ".self_attn.rotary_emb.inv_freq"


def open_safetensors_folder(path: Path) -> Checkpoint:
    """Open and check a folder. Raises CheckpointError; on any error nothing stays open."""
    # Configuration first: it is small, and it tells a wrong kind of model before anything large is looked at.
    vocabulary = read_vocabulary(path)
    config = read_model_config(path, vocabulary.token_ids)
    check_config(str(path / "config.json"), config)
    shards = open_shards(path)
    try:
        return _build_checkpoint(path, config, vocabulary, shards)
    except BaseException:
        shards.close()
        raise


class SafetensorsShards:
    """TensorSource over the files of a folder, under the names the files use."""

    def __init__(self, files: Mapping[str, tuple[mmap.mmap, dict[str, SafetensorsEntry]]]) -> None:
        self._mapped = [mapped for mapped, _ in files.values()]
        self._bytes = {file: np.frombuffer(mapped, dtype=np.uint8) for file, (mapped, _) in files.items()}
        self._places = {
            name: (file, entry)
            for file, (_, entries) in files.items()
            for name, entry in entries.items()
            if not name.endswith(_IGNORED_SUFFIX)
        }
        self.file_bytes = sum(len(mapped) for mapped, _ in files.values())

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, (_, entry) in self._places.items()}

    def qtypes(self) -> Mapping[str, str]:
        """Stored type of every tensor."""
        return {name: entry.qtype for name, (_, entry) in self._places.items()}

    def drop(self, name: str) -> None:
        """Forget a tensor that repeats another one."""
        del self._places[name]

    def read(self, name: str) -> Tensor:
        file, entry = self._places[name]
        if file not in self._bytes:
            raise CheckpointError(file, "was read after the checkpoint was closed", tensor=name)
        data: npt.NDArray[np.uint8] = self._bytes[file][entry.offset : entry.offset + entry.num_bytes]
        return Tensor(name, entry.qtype, entry.shape, data)

    def release_pages(self) -> None:
        for mapped in self._mapped:
            mapped.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        # A mapping goes with its last view: tensors that were handed out stay valid.
        self._bytes = {}


def open_shards(folder: Path, *, ignored_suffixes: tuple[str, ...] = ()) -> SafetensorsShards:
    """Map model.safetensors, or all the shards of its index, and check every header.

    Tensors whose names end in one of `ignored_suffixes` do not exist for the caller.
    """
    if (folder / _INDEX).is_file():
        weight_map = _read_weight_map(folder)
        names = sorted(set(weight_map.values()))
    elif (folder / _SINGLE).is_file():
        weight_map, names = None, [_SINGLE]
    else:
        raise CheckpointError(str(folder), f"holds neither {_SINGLE} nor {_INDEX}; only safetensors weights are read")
    files = {}
    for name in names:
        shard = folder / name
        if not shard.is_file():
            raise CheckpointError(str(shard), f"is missing, but {_INDEX} lists it")
        mapped = _map_file(shard)
        files[str(shard)] = (mapped, read_safetensors_header(shard, mapped, ignored_suffixes=ignored_suffixes))
    if weight_map is not None:
        weight_map = {tensor: name for tensor, name in weight_map.items() if not tensor.endswith(ignored_suffixes)}
        _check_index(folder, weight_map, {Path(file).name: entries for file, (_, entries) in files.items()})
    return SafetensorsShards(files)


def _map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            raise CheckpointError(str(path), "is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_weight_map(folder: Path) -> dict[str, str]:
    index = folder / _INDEX
    weight_map = read_json_file(index, 1 << 26).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(str(index), "weight_map must be an object of tensor names and file names")
    for tensor, name in weight_map.items():
        # A bare file name: nothing outside the folder is ever opened.
        if not isinstance(name, str) or not name.endswith(".safetensors") or name != Path(name).name or "\\" in name:
            raise CheckpointError(str(index), f"names the file {str(name)[:100]!r}, not a file name", tensor=tensor)
        if "\0" in name:
            raise CheckpointError(str(index), "names a file with a NUL character", tensor=tensor)
    if len(set(weight_map.values())) > _MAX_SHARDS:
        raise CheckpointError(str(index), f"lists more than {_MAX_SHARDS} files")
    return weight_map


def _check_index(folder: Path, weight_map: Mapping[str, str], found: Mapping[str, Mapping[str, object]]) -> None:
    """Index and shards must say the same."""
    for tensor, name in weight_map.items():
        if tensor not in found[name]:
            raise CheckpointError(str(folder / name), f"is not in this file, but {_INDEX} says so", tensor=tensor)
    for name, tensors in found.items():
        for tensor in tensors:
            if weight_map.get(tensor) != name:
                raise CheckpointError(str(folder / name), f"is not listed for this file in {_INDEX}", tensor=tensor)


def _build_checkpoint(path: Path, config: ModelConfig, vocabulary: Vocabulary, shards: SafetensorsShards) -> Checkpoint:
    if config.tie_word_embeddings and LM_HEAD in shards.shapes():
        _drop_repeated_head(path, shards)
    check_tensors(str(path), config, shards.shapes())
    sizes: Counter[str] = Counter()
    for name, shape in shards.shapes().items():
        sizes[shards.qtypes()[name]] += math.prod(shape)
    return Checkpoint(
        path=path,
        name=_folder_name(path),
        config=config,
        tokenizer_spec=TokenizerSpec(
            tokenizer_json=vocabulary.tokenizer_json,
            bos_token_id=config.bos_token_id,
            eos_token_ids=config.eos_token_ids,
            add_bos_token=vocabulary.adds_bos(config.bos_token_id),
            vocab_size=config.vocab_size,
            source=vocabulary.tokenizer_json or str(path),
        ),
        quantization=sizes.most_common(1)[0][0],
        num_parameters=sum(sizes.values()),
        file_bytes=shards.file_bytes,
        chat_template=chat_template_kind(vocabulary.token_ids, vocabulary.template_text),
        source=shards,
    )


def _drop_repeated_head(path: Path, shards: SafetensorsShards) -> None:
    """Some exports store a tied matrix twice. A second one that differs is an error: one of the two facts is wrong."""
    embedding = shards.read(EMBEDDING) if EMBEDDING in shards.shapes() else None
    if embedding is None or not np.array_equal(embedding.data, shards.read(LM_HEAD).data):
        raise CheckpointError(str(path), "differs from the embeddings, but tie_word_embeddings is true", tensor=LM_HEAD)
    shards.drop(LM_HEAD)


def _folder_name(path: Path) -> str:
    """The folder's name, or the repository's when the folder is a snapshot in the hub's cache."""
    path = path.absolute()
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.rsplit("--", 1)[-1]
    return path.name
