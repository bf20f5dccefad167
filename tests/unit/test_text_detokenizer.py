"""Text of a token stream: the same however the stream is cut, and never half a character."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tampu.core.tokenizer_spec import TokenizerSpec
from tampu.text.detokenizer import Detokenizer
from tampu.text.tokenizer import load_tokenizer

PIECES = [b"a", b" the", "é".encode(), "🦙".encode(), "日本".encode(), b"\xf0\x9f", b"\xa6\x99", b"\xe2\x80", b"\xff"]


def spell(data: bytes) -> str:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return "".join(chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in data)


TOKENS = [*([bytes([byte]) for byte in range(256)]), *(piece for piece in PIECES if len(piece) > 1)]
TOKENIZER = load_tokenizer(
    TokenizerSpec(
        pre_tokenizer="gpt-2",
        tokens=(*(spell(token) for token in TOKENS), "<|python_tag|>", "<|eot_id|>"),
        token_types=(*([1] * len(TOKENS)), 3, 3),
        vocab_size=len(TOKENS) + 10,
    )
)
PYTHON_TAG = len(TOKENS)
IDS = st.lists(st.one_of(st.integers(250, len(TOKENS) + 9), st.integers(0, 255)), max_size=20)


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    text_ids = draw(st.text(max_size=8).map(lambda text: list(text.encode("utf-8", "replace"))))
    ids = draw(st.one_of(IDS, st.just(text_ids)))
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    return ids, [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


@given(cut_streams())
def test_every_cut_gives_the_text_decoded_at_once(stream: tuple[list[int], list[list[int]]]) -> None:
    ids, parts = stream
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(part) for part in parts]
    assert "".join(pieces) + detokenizer.finish() == TOKENIZER.decode(ids)


def test_all_cuts_of_one_stream() -> None:
    ids = list("né🦙日".encode())
    for mask in range(2 ** (len(ids) - 1)):
        detokenizer = Detokenizer(TOKENIZER)
        pieces, part = [], []
        for position, token_id in enumerate(ids):
            part.append(token_id)
            if mask >> position & 1:
                pieces.append(detokenizer.add(part))
                part = []
        pieces.append(detokenizer.add(part))
        assert all("\ufffd" not in piece for piece in pieces)
        assert "".join(pieces) + detokenizer.finish() == "né🦙日"


def test_a_character_waits_for_its_last_byte() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.add([byte]) for byte in "🦙!".encode()] == ["", "", "", "🦙", "!"]
    assert detokenizer.finish() == ""


def test_an_unfinished_character_becomes_the_replacement_character_at_the_end() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert detokenizer.add(b"a\xf0\x9f") == "a"
    assert detokenizer.finish() == "\ufffd"


def test_special_tokens_are_left_out_unless_shown() -> None:
    ids = [ord("a"), PYTHON_TAG, ord("b"), PYTHON_TAG + 1]
    assert Detokenizer(TOKENIZER).add(ids) == "ab"
    assert Detokenizer(TOKENIZER, shown=["<|python_tag|>", "<absent>"]).add(ids) == "a<|python_tag|>b"
