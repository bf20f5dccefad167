"""The tokenizer against independent implementations, and its promise that text never becomes a special token."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from llama3_vocabulary import llama3_spec, load_llama3, reference, specials
from tokenizers import pre_tokenizers

from tampu.core.errors import CheckpointError
from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.model.bundled import bundled_model_path
from tampu.model.checkpoint import open_checkpoint
from tampu.text.segments import Special, Text
from tampu.text.tokenizer import Tokenizer, load_tokenizer, spelled_bytes

CORPUS = [
    "The way-station on the Inca road, where llama caravans and relay runners changed over.",
    "I'VE we'Ll they're it's 'tis 'S 'ſ don’t ROCK'N'ROLL",
    'def f(x: int) -> str:\n\treturn f"{x!r:>{10}}"  # ok\n\n\nclass A(B):\n    pass\r\n',
    'SELECT * FROM "t" WHERE a<>1 AND b=\'x\'; -- 100%\n{"k":[1,2.5e-3,null,true]}</div>&nbsp;$$ €£¥',
    "0 1 12 123 1234 12345 3.14159 1,234,567.89 ١٢٣٤ १२३४ ²³ ⅷ Ⅻ ½ 𝟘𝟙𝟚𝟛",
    " a  b   c    d\t\te\n\n\nf \n g\r\n\r\nh   \n   i\u00a0j\u2003k\u3000l \x0b\x0c\x1c\x85 end   ",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. İstanbul ıI ẞß ﬁ ǅ ŉ",
    "Съешь же ещё этих мягких французских булок. Ґанок, її. Ελληνικά: Ξεσκεπάζω τὴν ψυχοφθόρα",
    "こんにちは世界。カタカナ、ひらがな、漢字｡ 你好，世界！繁體中文 안녕하세요 세계 한국어",
    "مرحبا بالعالم، كيف حالك؟ שָׁלוֹם עוֹלָם नमस्ते दुनिया สวัสดีชาวโลก ကမ္ဘာ ជំរាបសួរ ಕನ್ನಡ தமிழ்",
    "e\u0301 n\u0303 a\u030a\u0323 Z̸͚͠a̵͘l̷g̸o̴ \u200bzero\u200dwidth\ufeff \u202eright-to-left\u202c",
    "🦙🏔️👩‍👩‍👧‍👦🇵🇪🇯🇵👍🏽 ☁️ ⌚ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ¯\\_(ツ)_/¯ ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋ ∮E⋅da=Q",
    "Runasimi: Allillanchu? Imaynallam kachkanki? Ñuqaqa tampupi tiyani.",
    "\x00\x01\x7f\ufffd\U0010ffff \U000e0001",
    "http://example.com/a?b=c&d=e#f user@example.org C:\\path\\file.txt /usr/bin/env -la --x=y",
    "",
    " ",
    "\n",
]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=" \t\r\n\u00a0'aSt09.!ſñ界\u0301🦙", max_size=60),
    st.lists(st.sampled_from(CORPUS), max_size=4).map("".join),
)


@pytest.fixture(scope="module")
def llama3() -> Tokenizer:
    return load_llama3()


@pytest.mark.parametrize("text", CORPUS)
def test_llama3_ids_equal_tiktoken_on_the_corpus(llama3: Tokenizer, text: str) -> None:
    expected = reference().encode(text, disallowed_special=())
    assert llama3.encode(text) == expected
    assert llama3.decode(expected) == text


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_llama3_ids_equal_tiktoken_on_any_text(text: str) -> None:
    assert load_llama3().encode(text) == reference().encode(text, disallowed_special=())


def test_every_ordinary_token_spells_the_bytes_of_its_rank(llama3: Tokenizer) -> None:
    encoding = reference()
    first_special = encoding.encode_single_token("<|begin_of_text|>")
    assert [llama3.token_bytes(i) for i in range(first_special)] == [
        encoding.decode_single_token_bytes(i) for i in range(first_special)
    ]
    assert all(llama3.token_bytes(i) == b"" and llama3.is_special(i) for i in range(first_special, llama3.vocab_size))


def test_special_spellings_in_text_never_become_special_ids(llama3: Tokenizer) -> None:
    for name in specials():
        for text in (name, f"a{name}b", f"{name}{name}", f" {name}\n"):
            ids = llama3.encode(text)
            assert not any(llama3.is_special(i) for i in ids)
            assert llama3.decode(ids) == text


def test_only_special_segments_become_special_ids(llama3: Tokenizer) -> None:
    ids = llama3.encode_segments([Special("<|begin_of_text|>"), Text("<|eot_id|>"), Special("<|eot_id|>")])
    assert [i for i in ids if llama3.is_special(i)] == [128000, 128009]
    assert ids == [128000, *llama3.encode("<|eot_id|>"), 128009]


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.data())
def test_cuts_between_text_segments_leave_no_trace(text: str, data: st.DataObject) -> None:
    tokenizer = load_llama3()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert tokenizer.encode_segments([Text(part) for part in parts]) == tokenizer.encode_segments([Text(text)])


def test_bos_is_added_once_and_only_when_the_model_wants_it(llama3: Tokenizer) -> None:
    assert llama3.encode_segments([Text("Hi")])[0] == 128000
    assert llama3.encode_segments([Special("<|begin_of_text|>"), Text("Hi")]).count(128000) == 1
    assert llama3.encode_segments([]) == [128000]
    without = load_tokenizer(dataclasses.replace(llama3_spec(), add_bos_token=False))
    assert 128000 not in without.encode_segments([Text("Hi")])


def test_a_missing_special_token_is_named(llama3: Tokenizer) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: .*'<\|im_start\|>'"):
        llama3.encode_segments([Special("<|im_start|>")])


def test_a_lone_surrogate_counts_as_the_replacement_character(llama3: Tokenizer) -> None:
    assert llama3.encode("a\ud83ez") == llama3.encode("a\ufffdz")
    assert llama3.encode("\ud83e\udd99") == llama3.encode("🦙")


def test_ids_without_a_token_spell_nothing() -> None:
    tokenizer = load_tokenizer(tiny_spec(vocab_size=400))
    assert tokenizer.vocab_size == 400
    assert tokenizer.num_tokens == 259
    assert tokenizer.token_bytes(399) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.is_special(399)


# --- smollm and gpt-2 against the library's own building blocks -------------------------------------------------


def byte_level_pieces(pre_tokenizer: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


def ours(name: str) -> pre_tokenizers.PreTokenizer:
    encoder = load_tokenizer(tiny_spec(pre_tokenizer=name))._encoder
    assert encoder.pre_tokenizer is not None
    return encoder.pre_tokenizer


GPT2_BLOCK = pre_tokenizers.ByteLevel(add_prefix_space=False)
SMOLLM_BLOCK = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2_BLOCK])


@pytest.mark.parametrize(("name", "block"), [("gpt-2", GPT2_BLOCK), ("smollm", SMOLLM_BLOCK)])
@pytest.mark.parametrize("text", CORPUS)
def test_pieces_equal_the_library_block_on_the_corpus(name: str, block: pre_tokenizers.PreTokenizer, text: str) -> None:
    assert byte_level_pieces(ours(name), text) == byte_level_pieces(block, text)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_pieces_equal_the_library_block_on_any_text(text: str) -> None:
    for name, block in (("gpt-2", GPT2_BLOCK), ("smollm", SMOLLM_BLOCK)):
        assert byte_level_pieces(ours(name), text) == byte_level_pieces(block, text)


def test_gpt2_merges_equal_tiktoken() -> None:
    """The same merge rules over GPT-2's pattern: a vocabulary learned here, encoded by both libraries."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for i, pair in enumerate([b"th", b"the", b" the", b"in", b"ing", b"\xc3\xb1", b"  ", b"    ", b"11", b"llam"]):
        ranks[pair] = 256 + i
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("tiny", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    merges = ["t h", "th e", "Ġ the", "i n", "in g", "Ã ±", "Ġ Ġ", "ĠĠ ĠĠ", "1 1"]
    spec = tiny_spec(extra=("th", "the", "Ġthe", "in", "ing", "Ã±", "ĠĠ", "ĠĠĠĠ", "11"), merges=tuple(merges))
    tokenizer = load_tokenizer(spec)
    for text in CORPUS:
        decoded = [encoding.decode_single_token_bytes(i) for i in encoding.encode(text)]
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode(text)] == decoded


# --- files ------------------------------------------------------------------------------------------------------


def byte_tokens() -> Iterator[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    extra = iter(range(0x100, 0x200))
    for byte in range(256):
        yield chr(byte) if byte in printable else chr(next(extra))


def tiny_spec(
    *,
    pre_tokenizer: str = "gpt-2",
    extra: tuple[str, ...] = (),
    merges: tuple[str, ...] = (),
    vocab_size: int = 0,
) -> TokenizerSpec:
    """All bytes, then `extra`, then three special tokens."""
    tokens = (*byte_tokens(), *extra, "<|im_start|>", "<|im_end|>", "<|endoftext|>")
    return TokenizerSpec(
        pre_tokenizer=pre_tokenizer,
        tokens=tokens,
        token_types=(*([1] * (len(tokens) - 3)), 3, 3, 3),
        merges=merges,
        bos_token_id=len(tokens) - 3,
        eos_token_ids=(len(tokens) - 2,),
        vocab_size=vocab_size,
        source="tiny.gguf",
    )


def test_byte_level_spelling_covers_every_byte_once() -> None:
    assert [spelled_bytes(char) for char in byte_tokens()] == [bytes([byte]) for byte in range(256)]
    assert spelled_bytes("日") is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (
            tiny_spec(pre_tokenizer="qwen2"),
            "pre-tokenizer 'qwen2' is not supported (supported: gpt-2, llama-bpe, smollm)",
        ),
        (dataclasses.replace(tiny_spec(), tokens=(), token_types=()), "the vocabulary is empty"),
        (dataclasses.replace(tiny_spec(), token_types=(1, 2)), "259 tokens but 2 token types"),
        (tiny_spec(extra=("a",)), "token 'a' appears twice, as 97 and 256"),
        (tiny_spec(extra=("日",)), "token 256 '日' is not spelled in byte-level characters"),
        (tiny_spec(merges=("ab",)), "merge 'ab' is not two tokens with a blank between them"),
        (tiny_spec(merges=("a b",)), "do not fit together"),
        (tiny_spec(vocab_size=12), "259 tokens, but the model's embedding has 12 rows"),
        (dataclasses.replace(tiny_spec(), eos_token_ids=(2, 999)), "EOS token id 999 is not in the vocabulary"),
    ],
)
def test_a_broken_vocabulary_is_refused_with_the_file_and_the_reason(spec: TokenizerSpec, reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(spec)
    assert str(caught.value).startswith("tiny.gguf: ")
    assert reason in str(caught.value)


def test_user_defined_tokens_are_found_in_text() -> None:
    spec = tiny_spec(extra=("<tool_call>",))
    types = list(spec.token_types)
    types[256] = 4
    tokenizer = load_tokenizer(dataclasses.replace(spec, token_types=tuple(types)))
    assert tokenizer.encode("a<tool_call>b") == [97, 256, 98]
    assert tokenizer.token_bytes(256) == b"<tool_call>"
    assert not tokenizer.is_special(256)


def tokenizer_json() -> dict[str, object]:
    """A small file in the form Llama 3.1 has it."""
    vocabulary = {token: i for i, token in enumerate(byte_tokens())} | {"th": 256, "the": 257}
    split = {"type": "Split", "pattern": {"Regex": r"\p{N}{1,3}|\p{L}+|\s+|[^\s\p{L}\p{N}]+"}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    bos = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    template = {
        "type": "TemplateProcessing",
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {
            "<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [258], "tokens": ["<|begin_of_text|>"]}
        },
    }

    def added(token_id: int, content: str, *, special: bool) -> dict[str, object]:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {"id": token_id, "content": content, "special": special, **flags}

    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": None,
        "added_tokens": [
            added(258, "<|begin_of_text|>", special=True),
            added(259, "<|eot_id|>", special=True),
            added(262, "<tool_call>", special=False),
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**split, "invert": False}, byte_level]},
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": ["t h", "th e"], "ignore_merges": True},
    }


def load_json(folder: Path, document: object) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    spec = TokenizerSpec(tokenizer_json=str(path), bos_token_id=258, eos_token_ids=(259,), vocab_size=300, source="m")
    return load_tokenizer(spec)


def test_tokenizer_json(tmp_path: Path) -> None:
    tokenizer = load_json(tmp_path, tokenizer_json())
    assert tokenizer.encode("the <|eot_id|>") == [257, 32, *b"<|", *b"eot", *b"_", *b"id", *b"|>"]
    assert tokenizer.encode("x<tool_call>") == [120, 262]
    assert tokenizer.encode_segments([Text("the"), Special("<|eot_id|>")]) == [258, 257, 259]
    assert tokenizer.token_bytes(262) == b"<tool_call>"
    assert tokenizer.token_bytes(257) == b"the"
    assert [i for i in range(300) if tokenizer.is_special(i)] == [258, 259, 260, 261, *range(263, 300)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"type": "Unigram", "vocab": {"a": 0}}}, "tokenizer model 'Unigram' is not supported"),
        ({"model": {}}, "no model with a vocabulary"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "not byte-level"),
        ({"added_tokens": [{"id": "x"}]}, "has no id and content"),
        ({"normalizer": {"type": "Nonsense"}}, "tokenizer.json is not usable"),
        ({"added_tokens": [{"id": 10**9, "content": "<x>", "special": True}]}, "token id 1000000000 is far beyond"),
    ],
)
def test_a_broken_tokenizer_json_is_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_json(tmp_path, tokenizer_json() | change)
    assert reason in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_an_unreadable_tokenizer_json_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError):
        load_tokenizer(TokenizerSpec(tokenizer_json=str(path), source="m"))
    with pytest.raises(CheckpointError):
        load_tokenizer(TokenizerSpec(tokenizer_json=str(tmp_path / "absent.json"), source="m"))


@pytest.mark.bundled
def test_the_bundled_vocabulary_loads_and_round_trips() -> None:
    path = bundled_model_path()
    assert path is not None, "the bundled model is not installed"
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(checkpoint.tokenizer_spec)
    checkpoint.close()
    # Ids made by transformers' GPT2 tokenizer over the same file.
    golden = json.loads((Path(__file__).parents[1] / "goldens" / "smollm2_ids.json").read_text(encoding="utf-8"))
    assert [case["text"] for case in golden] == CORPUS
    for case in golden:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"]) == case["text"]
