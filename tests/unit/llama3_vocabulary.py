"""Test support: Llama 3's vocabulary as a GGUF file would carry it, made from Meta's `tokenizer.model`.

That file (in the PyPI package `llama_models`) is a list of ranks for tiktoken. Byte-level spellings follow GPT-2's
table; a token's merges are all the ways to cut it into two tokens, in the order of the ranks.
"""

from __future__ import annotations

import base64
import importlib.util
from functools import cache
from pathlib import Path

import tiktoken

from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.text.tokenizer import Tokenizer, load_tokenizer

# As documented by Meta for Llama 3; written out here because the reference must not share code with what it checks.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NAMED_SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)


def _ranks_file() -> Path:
    spec = importlib.util.find_spec("llama_models")
    assert spec is not None, "the test dependency llama_models is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent / "llama3" / "tokenizer.model"


@cache
def ranks() -> dict[bytes, int]:
    """Token bytes -> rank, 128,000 entries."""
    lines = _ranks_file().read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}


def specials() -> list[str]:
    """The 256 special tokens, in id order."""
    return [*NAMED_SPECIALS, *(f"<|reserved_special_token_{i}|>" for i in range(2, 256 - len(NAMED_SPECIALS) + 2))]


@cache
def reference() -> tiktoken.Encoding:
    """tiktoken over Meta's ranks."""
    first = len(ranks())
    return tiktoken.Encoding(
        name="llama3",
        pat_str=PATTERN,
        mergeable_ranks=ranks(),
        special_tokens={name: first + i for i, name in enumerate(specials())},
    )


def _spelling_table() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        table.setdefault(byte, chr(0x100 + len(table) - len(printable)))
    return [table[byte] for byte in range(256)]


def _merges_of(token: bytes, all_ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of tokens that joins to this token, lowest ranks first, as Hugging Face's conversion lists them."""
    cuts = ((token[:i], token[i:]) for i in range(1, len(token)))
    pairs = [(left, right) for left, right in cuts if left in all_ranks and right in all_ranks]
    return sorted(pairs, key=lambda pair: (all_ranks[pair[0]], all_ranks[pair[1]]))


@cache
def llama3_spec() -> TokenizerSpec:
    """The vocabulary and merges of Llama 3.1 in GGUF's form."""
    table = _spelling_table()

    def spell(token: bytes) -> str:
        return "".join(table[byte] for byte in token)

    by_rank = sorted(ranks().items(), key=lambda item: item[1])
    pairs = [pair for token, _ in by_rank for pair in _merges_of(token, ranks())]
    names = specials()
    first = len(by_rank)
    return TokenizerSpec(
        pre_tokenizer="llama-bpe",
        tokens=(*(spell(token) for token, _ in by_rank), *names),
        token_types=(*([1] * first), *([3] * len(names))),
        merges=tuple(f"{spell(left)} {spell(right)}" for left, right in pairs),
        bos_token_id=first,
        eos_token_ids=(first + 1, first + 8, first + 9),
        add_bos_token=True,
        vocab_size=first + len(names),
        source="tokenizer.model",
    )


@cache
def load_llama3() -> Tokenizer:
    """Our tokenizer over that vocabulary; loading takes most of a second, so once per test run."""
    return load_tokenizer(llama3_spec())
