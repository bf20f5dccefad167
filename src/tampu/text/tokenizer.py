"""Byte-level BPE over Hugging Face `tokenizers`: text to token ids, token ids to bytes.

Built from a `tokenizer.json` or from the vocabulary of a GGUF file. Special tokens are taken out of the encoder
altogether: no text can produce one, only a `Special` segment can. Knows no chat template and no model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, pre_tokenizers
from tokenizers import Tokenizer as Encoder
from tokenizers.models import BPE

from tampu.core.errors import CheckpointError
from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.text.segments import Segment, Special, Text

# The published splitting patterns. Llama 3: contractions in any case, words with one leading sign, numbers of up to
# three digits, signs with trailing newlines, newlines with leading blanks, blanks up to the last one before a word.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"
    r"|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+"
    r"|\s+(?!\S)"
    r"|\s+"
)
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ONE_DIGIT_PATTERN = r"\p{N}"

# GGUF's name of a pre-tokenizer -> the patterns, applied one after another.
_PATTERNS: dict[str, tuple[str, ...]] = {
    "llama-bpe": (LLAMA3_PATTERN,),
    "smollm": (ONE_DIGIT_PATTERN, GPT2_PATTERN),
    "gpt-2": (GPT2_PATTERN,),
}
# Llama 3's vocabulary was made for tiktoken, where a whole piece that is a token is taken before any merge.
_WHOLE_PIECE_FIRST = frozenset({"llama-bpe"})

_NORMAL, _USER_DEFINED = 1, 4  # GGUF token types; every other type is special to us
_MAX_TOKENIZER_JSON_BYTES = 256 << 20


def _byte_spelling() -> dict[str, int]:
    """The byte that each character of a byte-level spelling stands for (GPT-2's table, 256 entries)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(0x100 + i): byte for i, byte in enumerate(others)})
    return table


_BYTE_OF_CHAR = _byte_spelling()


def spelled_bytes(spelling: str) -> bytes | None:
    """The bytes of a byte-level spelling, or None when a character is not of that alphabet."""
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in spelling])
    except KeyError:
        return None


class Tokenizer:
    """Encodes text and spells tokens. Immutable after construction; safe to use from several threads.

    `vocab_size` counts the rows of the model's embedding: ids beyond the tokenizer's own spell nothing.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        token_bytes: Sequence[bytes],
        special_ids: dict[str, int],
        vocab_size: int,
        bos_token_id: int | None,
        eos_token_ids: tuple[int, ...],
        add_bos_token: bool,
        source: str,
    ) -> None:
        self._encoder = encoder
        self._token_bytes = tuple(token_bytes)
        self._special_ids = special_ids
        self._special_names = {token_id: name for name, token_id in special_ids.items()}
        self.vocab_size = max(vocab_size, len(self._token_bytes))
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.add_bos_token = add_bos_token and bos_token_id is not None
        self.source = source

    @property
    def num_tokens(self) -> int:
        """Ids that the tokenizer itself knows; at most `vocab_size`."""
        return len(self._token_bytes)

    @property
    def special_names(self) -> frozenset[str]:
        """Spellings of all special tokens."""
        return frozenset(self._special_ids)

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no BOS, never a special token. A lone surrogate counts as U+FFFD."""
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        # Unlike `encode`, the batch form gives up the GIL and keeps no offsets: 2.6 times as fast on a long prompt.
        ids: list[int] = self._encoder.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of a prompt. BOS is put in front when the model wants one and the prompt does not bring it.

        Neighbouring `Text` segments are joined first, so the cuts made by a template leave no trace.
        Raises CheckpointError when the vocabulary lacks a special token.
        """
        ids: list[int] = []
        pending: list[str] = []
        for segment in segments:
            match segment:
                case Text(text):
                    pending.append(text)
                case Special(name):
                    if pending:
                        ids += self.encode("".join(pending))
                        pending.clear()
                    ids.append(self.special_id(name))
        if pending:
            ids += self.encode("".join(pending))
        bos = self.bos_token_id
        if self.add_bos_token and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def special_id(self, name: str) -> int:
        """The id of a special token by its spelling. Raises CheckpointError when there is none."""
        token_id = self._special_ids.get(name)
        if token_id is None:
            raise CheckpointError(self.source, f"the vocabulary has no special token {name!r}, which the prompt needs")
        return token_id

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for; b"" for special tokens and for ids without a token."""
        return self._token_bytes[token_id] if 0 <= token_id < len(self._token_bytes) else b""

    def special_name(self, token_id: int) -> str | None:
        """The spelling of a special token, or None when the id is an ordinary one."""
        return self._special_names.get(token_id)

    def is_special(self, token_id: int) -> bool:
        """True for ids that spell no text: special tokens and ids without a token."""
        return token_id in self._special_names or not 0 <= token_id < len(self._token_bytes)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens at once; special tokens are left out, invalid UTF-8 becomes U+FFFD."""
        return b"".join(self.token_bytes(token_id) for token_id in token_ids).decode("utf-8", "replace")


def load_tokenizer(spec: TokenizerSpec) -> Tokenizer:
    """Build the tokenizer a checkpoint describes.

    Raises CheckpointError naming the file and what is wrong with it.
    """
    if spec.tokenizer_json is not None:
        return _from_tokenizer_json(spec, Path(spec.tokenizer_json))
    return _from_gguf_vocabulary(spec)


def _from_gguf_vocabulary(spec: TokenizerSpec) -> Tokenizer:
    source = spec.source or "GGUF vocabulary"
    patterns = _PATTERNS.get(spec.pre_tokenizer)
    if patterns is None:
        known = ", ".join(sorted(_PATTERNS))
        raise CheckpointError(source, f"pre-tokenizer {spec.pre_tokenizer!r} is not supported (supported: {known})")
    if not spec.tokens:
        raise CheckpointError(source, "the vocabulary is empty")
    types = spec.token_types or (_NORMAL,) * len(spec.tokens)
    if len(types) != len(spec.tokens):
        raise CheckpointError(source, f"{len(spec.tokens)} tokens but {len(types)} token types")

    vocabulary: dict[str, int] = {}
    special_ids: dict[str, int] = {}
    token_bytes: list[bytes] = []
    user_defined: list[str] = []
    for token_id, (spelling, token_type) in enumerate(zip(spec.tokens, types, strict=True)):
        if token_type not in (_NORMAL, _USER_DEFINED):
            special_ids.setdefault(spelling, token_id)
            token_bytes.append(b"")
            continue
        if spelling in vocabulary:
            raise CheckpointError(source, f"token {spelling!r} appears twice, as {vocabulary[spelling]} and {token_id}")
        vocabulary[spelling] = token_id
        if token_type == _USER_DEFINED:
            user_defined.append(spelling)
            token_bytes.append(spelling.encode())
            continue
        spelled = spelled_bytes(spelling)
        if spelled is None:
            raise CheckpointError(source, f"token {token_id} {spelling!r} is not spelled in byte-level characters")
        token_bytes.append(spelled)

    encoder = _bpe_encoder(vocabulary, spec.merges, patterns, spec.pre_tokenizer in _WHOLE_PIECE_FIRST, source)
    if user_defined:
        encoder.add_tokens([AddedToken(spelling, normalized=False) for spelling in user_defined])
    return Tokenizer(
        encoder,
        token_bytes=token_bytes,
        special_ids=special_ids,
        vocab_size=_checked_vocab_size(spec, len(token_bytes), source),
        bos_token_id=spec.bos_token_id,
        eos_token_ids=spec.eos_token_ids,
        add_bos_token=spec.add_bos_token,
        source=source,
    )


def _bpe_encoder(
    vocabulary: dict[str, int], merges: Sequence[str], patterns: Sequence[str], whole_piece_first: bool, source: str
) -> Encoder:
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, separator, right = merge.partition(" ")
        if not (left and separator and right):
            raise CheckpointError(source, f"merge {merge!r} is not two tokens with a blank between them")
        pairs.append((left, right))
    try:
        encoder = Encoder(BPE(vocab=vocabulary, merges=pairs, ignore_merges=whole_piece_first))
    except Exception as error:  # the library raises bare Exception for a merge whose parts are not tokens
        raise CheckpointError(source, f"the vocabulary and its merges do not fit together: {error}") from error
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return encoder


def _checked_vocab_size(spec: TokenizerSpec, num_tokens: int, source: str) -> int:
    if spec.vocab_size and num_tokens > spec.vocab_size:
        raise CheckpointError(source, f"{num_tokens} tokens, but the model's embedding has {spec.vocab_size} rows")
    for name, token_id in [("BOS", spec.bos_token_id), *(("EOS", eos) for eos in spec.eos_token_ids)]:
        if token_id is not None and not 0 <= token_id < max(spec.vocab_size, num_tokens):
            raise CheckpointError(source, f"{name} token id {token_id} is not in the vocabulary")
    return spec.vocab_size or num_tokens


def _from_tokenizer_json(spec: TokenizerSpec, path: Path) -> Tokenizer:
    source = spec.source or str(path)
    document = _read_tokenizer_json(path, source)
    model = document["model"]
    special_ids: dict[str, int] = {}
    literal: dict[int, str] = {}
    kept: list[Any] = []
    for entry in document.get("added_tokens") or []:
        if not (isinstance(entry, dict) and isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)):
            raise CheckpointError(source, f"added token {entry!r} has no id and content")
        if entry.get("special"):
            special_ids[entry["content"]] = entry["id"]
            model["vocab"].pop(entry["content"], None)
        else:
            literal[entry["id"]] = entry["content"]
            # The library numbers added tokens itself unless the model's vocabulary already knows them.
            model["vocab"].setdefault(entry["content"], entry["id"])
            kept.append(entry)

    adds_bos = _adds_bos(document.get("post_processor"))
    document |= {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
    try:
        encoder = Encoder.from_str(json.dumps(document))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(source, f"tokenizer.json is not usable: {error}") from error

    spellings: dict[int, bytes] = dict.fromkeys(special_ids.values(), b"")
    for spelling, token_id in model["vocab"].items():
        spelled = literal[token_id].encode() if token_id in literal else spelled_bytes(spelling)
        if spelled is None or not isinstance(token_id, int) or token_id < 0:
            raise CheckpointError(source, f"token {token_id!r} {spelling!r} is not spelled in byte-level characters")
        spellings[token_id] = spelled
    num_tokens = max(spellings) + 1
    if num_tokens > 2 * len(spellings) + 4096:  # ids are nearly dense in every real file
        raise CheckpointError(source, f"token id {num_tokens - 1} is far beyond the {len(spellings)} tokens there are")
    for token_id in set(range(num_tokens)) - set(spellings):
        special_ids[f"<|unnamed {token_id}|>"] = token_id
    return Tokenizer(
        encoder,
        token_bytes=[spellings.get(token_id, b"") for token_id in range(num_tokens)],
        special_ids=special_ids,
        vocab_size=_checked_vocab_size(spec, num_tokens, source),
        bos_token_id=spec.bos_token_id,
        eos_token_ids=spec.eos_token_ids,
        add_bos_token=spec.add_bos_token or adds_bos,
        source=source,
    )


def _read_tokenizer_json(path: Path, source: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_TOKENIZER_JSON_BYTES:
            raise CheckpointError(source, "tokenizer.json is larger than 256 MiB")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(source, f"tokenizer.json cannot be read: {error}") from error
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or not model["vocab"]:
        raise CheckpointError(source, "tokenizer.json has no model with a vocabulary")
    if model.get("type", "BPE") != "BPE":
        raise CheckpointError(source, f"tokenizer model {model.get('type')!r} is not supported (supported: BPE)")
    if not _mentions(document.get("pre_tokenizer"), "ByteLevel"):
        raise CheckpointError(source, "the pre-tokenizer is not byte-level; only byte-level BPE is supported")
    assert isinstance(document, dict)
    return document


def _mentions(step: Any, kind: str) -> bool:
    """True when a pre-tokenizer or a sequence of them holds a step of this kind."""
    if not isinstance(step, dict):
        return False
    return step.get("type") == kind or any(_mentions(part, kind) for part in step.get("pretokenizers") or [])


def _adds_bos(post_processor: Any) -> bool:
    """True when the post-processor puts a special token before a single text."""
    if not isinstance(post_processor, dict):
        return False
    if post_processor.get("type") == "Sequence":
        return any(_adds_bos(part) for part in post_processor.get("processors") or [])
    single = post_processor.get("single")
    return bool(isinstance(single, list) and single and isinstance(single[0], dict) and "SpecialToken" in single[0])
