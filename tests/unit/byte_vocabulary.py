"""Test support: a tokenizer with one token for each byte, so that any text can be tried against a grammar."""

from __future__ import annotations

import random
from functools import cache
from typing import Protocol

from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.text.grammar import GrammarCompiler, GrammarMatching
from tampu.text.tokenizer import Tokenizer, load_tokenizer

EOS = 256
SPECIALS = ("<|eot_id|>", "<|python_tag|>", "<|im_start|>", "<|im_end|>")
VOCAB_SIZE = 270  # more rows than tokens


def byte_spellings() -> list[str]:
    """GPT-2's spelling of each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256)]


@cache
def byte_tokenizer() -> Tokenizer:
    """256 bytes, then the special tokens; EOS is the first of those."""
    return load_tokenizer(
        TokenizerSpec(
            pre_tokenizer="gpt-2",
            tokens=(*byte_spellings(), *SPECIALS),
            token_types=(*([1] * 256), *([3] * len(SPECIALS))),
            eos_token_ids=(EOS,),
            vocab_size=VOCAB_SIZE,
        )
    )


@cache
def byte_compiler() -> GrammarCompiler:
    """A compiler over that tokenizer."""
    return GrammarCompiler(byte_tokenizer())


def is_allowed(mask: bytes | None, token_id: int) -> bool:
    """What a mask says about a token."""
    return mask is None or bool(mask[token_id // 8] >> (token_id % 8) & 1)


class Matchable(Protocol):
    """A grammar, or what holds one."""

    def new_matching(self) -> GrammarMatching:
        """Start to match."""


def accepts(grammar: Matchable, text: str) -> bool:
    """True when the grammar allows exactly this text and then the end."""
    matching = grammar.new_matching()
    data = text.encode()
    return matching.accept_tokens(data) and is_allowed(matching.next_mask(), EOS)


def random_answer(grammar: Matchable, rng: random.Random, *, max_tokens: int = 3000) -> str:
    """What a model with random logits writes under a grammar; after 60 tokens it would rather come to an end."""
    matching = grammar.new_matching()
    written = bytearray()
    for position in range(max_tokens):
        mask = matching.next_mask()
        allowed = [token_id for token_id in range(VOCAB_SIZE) if is_allowed(mask, token_id)]
        assert allowed, f"the grammar leads nowhere after {bytes(written)!r}"
        token_id = rng.choice(allowed)
        if position > 60 and rng.random() < 0.9:
            closing = [token_id for token_id in (EOS, ord('"')) if token_id in allowed]
            helpful = [token_id for token_id in b"}]abc019.-" if token_id in allowed]
            token_id = rng.choice(closing or helpful or allowed)
        if token_id == EOS:
            return written.decode()
        assert token_id < EOS, "a special token or an id without a token was allowed"
        written.append(token_id)
        matching.accept(token_id)
    raise AssertionError(f"no end after {max_tokens} tokens: {bytes(written[-200:])!r}")
