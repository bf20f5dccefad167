"""What a checkpoint says about its tokenizer: read by `model`, turned into a tokenizer by `text`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """Either a `tokenizer.json` on disk, or the vocabulary of a GGUF file (byte-level BPE).

    `tokens[i]` is the byte-level spelling of token i; `token_types[i]` is GGUF's: 1 normal, 2 unknown, 3 control,
    4 user-defined, 5 unused, 6 byte.
    """

    tokenizer_json: str | None = None  # path; when set, the GGUF fields are empty
    pre_tokenizer: str = ""  # llama-bpe, smollm, gpt-2
    tokens: tuple[str, ...] = ()
    token_types: tuple[int, ...] = ()
    merges: tuple[str, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    add_bos_token: bool = False
    vocab_size: int = 0  # rows of the embedding matrix; ids beyond the tokenizer's own are never produced
    source: str = ""  # file the facts come from, for error messages
