"""Makes `llama_logits.npz`: logits of tiny random Llamas by Hugging Face transformers, an independent implementation.

Run by hand, not by the tests (it needs torch and transformers, which nothing else here does):

    PYTHONPATH=src:tests python tests/goldens/make_llama_goldens.py PATH_OF_THE_BUNDLED_GGUF

transformers reads the same folders our tests read (and dequantises the same GGUF file, which needs accelerate), in
float32, with its eager attention.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from checkpoints import random_weights, write_hf_folder
from goldens.llama_models import (
    BUNDLED_TOKEN_IDS,
    GOLDEN_FILE,
    GOLDEN_MODELS,
    NUM_TOP,
    POSITIONS,
    SEED,
    golden_token_ids,
)


def main() -> None:
    """Compute and store all of them."""
    arrays = {}
    for name, config in GOLDEN_MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_hf_folder(Path(folder), config, random_weights(config, SEED))
            arrays[name] = logits_of(golden_token_ids(config), folder)[list(POSITIONS)]
        sys.stdout.write(f"{name}: mean {arrays[name].mean():.4f}, deviation {arrays[name].std():.4f}\n")
    bundled = Path(sys.argv[1])
    logits = logits_of(BUNDLED_TOKEN_IDS, str(bundled.parent), gguf_file=bundled.name)
    # The whole vocabulary would be megabytes: the most likely tokens of every position say enough.
    arrays["bundled_top"] = np.argsort(-logits, axis=-1, kind="stable")[:, :NUM_TOP].astype(np.int32)
    arrays["bundled_top_logits"] = np.take_along_axis(logits, arrays["bundled_top"], axis=-1)
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(GOLDEN_FILE, made_by=np.array(versions), **arrays)


def logits_of(token_ids: list[int], folder: str, **where: str) -> np.ndarray:
    """Logits of every position, (len(token_ids), vocab_size)."""
    model = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **where
    ).eval()
    with torch.no_grad():
        return np.asarray(model(torch.tensor([token_ids])).logits[0].numpy())


if __name__ == "__main__":
    main()
