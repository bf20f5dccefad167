"""Text to WordPiece ids as BERT wants them: [CLS] … [SEP], cut at a length. Knows no vectors.

Unlike a chat model's tokenizer, a literal "[SEP]" in a text becomes the special token, as in sentence-transformers:
the vectors have to agree, and there is no conversation to break out of.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from tampu.core.errors import CheckpointError

_MAX_CHARS_PER_WORD = 100  # a longer word is one [UNK], as BERT has it
_MAX_CHARS_PER_TOKEN = 64  # how many characters are looked at for each token that may be kept


class WordPieceFacts(Protocol):
    """What a checkpoint says about its vocabulary; `model.bert.WordPieceSpec` has it."""

    @property
    def tokenizer_json(self) -> str | None: ...
    @property
    def vocab_txt(self) -> str | None: ...
    @property
    def is_lowercased(self) -> bool: ...
    @property
    def strips_accents(self) -> bool | None: ...
    @property
    def splits_chinese_chars(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def source(self) -> str: ...


class WordPieceTokenizer:
    """Immutable after construction; may be used from any thread."""

    def __init__(self, tokenizer: Tokenizer, *, max_length: int, prompt: str = "") -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self.max_length = max_length

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, at most `max_length` each."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast([self._prompt + t for t in texts])]


def load_wordpiece(facts: WordPieceFacts, *, max_length: int, prompt: str = "") -> WordPieceTokenizer:
    """Build the tokenizer. Raises CheckpointError when its files are broken or name ids the model does not have."""
    if facts.tokenizer_json is not None:
        file = facts.tokenizer_json
        try:
            tokenizer = Tokenizer.from_file(file)
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(file, f"is not a tokenizer ({error})") from error
        if not isinstance(tokenizer.model, models.WordPiece):
            raise CheckpointError(file, f"holds a {type(tokenizer.model).__name__} model; BERT's is WordPiece")
    else:
        assert facts.vocab_txt is not None
        file = facts.vocab_txt
        tokenizer = _from_vocab(file, facts)
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= facts.vocab_size:
        raise CheckpointError(file, f"has token id {highest}, but the model's vocab_size is {facts.vocab_size}")
    return WordPieceTokenizer(tokenizer, max_length=max_length, prompt=prompt)


def _from_vocab(file: str, facts: WordPieceFacts) -> Tokenizer:
    try:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(file, f"cannot be read ({error})") from error
    if lines and lines[-1] == "":
        lines.pop()
    vocab = {token.rstrip("\r"): index for index, token in enumerate(lines)}
    for special in ("[UNK]", "[CLS]", "[SEP]", "[PAD]"):
        if special not in vocab:
            raise CheckpointError(file, f"lacks the token {special}")
    tokenizer = Tokenizer(
        models.WordPiece(vocab=vocab, unk_token="[UNK]", max_input_chars_per_word=_MAX_CHARS_PER_WORD)
    )
    tokenizer.add_special_tokens([token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab])
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=facts.splits_chinese_chars,
        strip_accents=facts.strips_accents,
        lowercase=facts.is_lowercased,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return tokenizer
