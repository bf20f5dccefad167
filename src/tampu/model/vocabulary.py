"""What the special tokens of a vocabulary say about a model: how a turn ends and which chat form it was taught."""

from __future__ import annotations

from collections.abc import Mapping

# Llama 3's three ways to stop, and ChatML's one.
_LLAMA3_END_TOKENS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
_CHATML_END_TOKEN = "<|im_end|>"
_LLAMA3_HEADER = "<|start_header_id|>"
_CHATML_HEADER = "<|im_start|>"


def is_llama3_vocabulary(token_ids: Mapping[str, int]) -> bool:
    """True when the special tokens are those of Llama 3. `token_ids` maps spellings to ids."""
    return _LLAMA3_HEADER in token_ids and "<|eot_id|>" in token_ids


def end_token_ids(token_ids: Mapping[str, int]) -> tuple[int, ...]:
    """Ids that end a turn by the vocabulary's own names, in a fixed order."""
    names: tuple[str, ...] = ()
    if is_llama3_vocabulary(token_ids):
        names = _LLAMA3_END_TOKENS
    elif _CHATML_HEADER in token_ids:
        names = (_CHATML_END_TOKEN,)
    return tuple(token_ids[name] for name in names if name in token_ids)


def chat_template_kind(token_ids: Mapping[str, int], template_text: str) -> str:
    """ "llama3", "chatml" or "none". A template in the file is only looked at for the markers it uses, never run."""
    for marker, kind in ((_LLAMA3_HEADER, "llama3"), (_CHATML_HEADER, "chatml")):
        if marker in template_text and marker in token_ids:
            return kind
    if is_llama3_vocabulary(token_ids):
        return "llama3"
    return "chatml" if _CHATML_HEADER in token_ids and _CHATML_END_TOKEN in token_ids else "none"
