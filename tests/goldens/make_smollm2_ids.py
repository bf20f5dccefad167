"""Makes smollm2_ids.json: token ids of the test corpus under SmolLM2's vocabulary, by `transformers` 5.23.0.

How: transformers reads the tokenizer out of the bundled GGUF file (`from_pretrained(..., gguf_file=...)`), and the
pre-tokenizer is set to the one that SmolLM2's own tokenizer.json names: single digits, then byte-level with GPT-2's
pattern (the GGUF reader of transformers leaves out the digits step).

    python make_smollm2_ids.py FOLDER_OF_THE_GGUF_FILE < corpus.json > smollm2_ids.json

corpus.json is the list CORPUS of tests/unit/test_text_tokenizer.py.
"""

import json
import sys
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import AutoTokenizer


def main() -> None:
    """Write text and ids of each corpus entry."""
    corpus = json.loads(sys.stdin.read())
    folder = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=next(folder.glob("*.gguf")).name)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    cases = [{"text": text, "ids": backend.encode(text, add_special_tokens=False).ids} for text in corpus]
    json.dump(cases, sys.stdout, ensure_ascii=False)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
