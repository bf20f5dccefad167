"""Makes `llama_logits.npz`: logits of tiny random Llamas by Hugging Face transformers, an independent implementation.

Run by hand, not by the tests (it needs torch and transformers, which nothing else here does):

    PYTHONPATH=src:tests python tests/goldens/make_llama_goldens.py

transformers reads the same folder our tests read, in float32, with its eager attention.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

from checkpoints import random_weights, write_hf_folder
from goldens.llama_models import GOLDEN_FILE, GOLDEN_MODELS, POSITIONS, SEED, golden_token_ids


def main() -> None:
    """Compute and store all of them."""
    arrays = {}
    for name, config in GOLDEN_MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            write_hf_folder(Path(folder), config, random_weights(config, SEED))
            model = transformers.LlamaForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            with torch.no_grad():
                logits = model(torch.tensor([golden_token_ids(config)])).logits[0]
        arrays[name] = logits[list(POSITIONS)].numpy()
        sys.stdout.write(f"{name}: mean {arrays[name].mean():.4f}, deviation {arrays[name].std():.4f}\n")
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    np.savez_compressed(GOLDEN_FILE, made_by=np.array(versions), **arrays)


if __name__ == "__main__":
    main()
