"""Classifies the cases of the JSON-Schema-Test-Suite: writes the tables of docs/json-schema.md to standard output.

    PYTHONPATH=src:tests/unit python tests/classify_json_schema.py FOLDER/json/tests

The suite comes with the source package of `jsonschema` (`pip download --no-binary :all: --no-deps jsonschema`). It is
not part of this repository and not needed to run its tests. A case is

* refused: `UnsupportedSchemaError`, naming a keyword;
* exact: the grammar accepts every valid instance of the case and no invalid one;
* narrowed: it accepts no invalid instance, but not every valid one;
* loosened: it accepts an invalid instance. That would be a fault: the exit status is then 1.

Instances are tried in several spellings, with the keys of objects in every order.
"""

import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from byte_vocabulary import accepts, byte_compiler

from tampu.core.errors import UnsupportedSchemaError

DRAFTS = ("draft2020-12", "draft2019-09", "draft7", "draft6", "draft4")
# Older drafts let a validator check these; all drafts let it treat them as annotations, and so do we.
ANNOTATIONS = ("optional/content", "content")


def spellings(value: Any) -> Iterator[str]:
    """JSON texts of a value, with the keys in every order."""
    if isinstance(value, dict):
        orders = itertools.permutations(value) if len(value) <= 4 else [tuple(value)]
        for keys in orders:
            inner = [list(itertools.islice(spellings(value[key]), 6)) for key in keys]
            for parts in itertools.islice(itertools.product(*inner), 12):
                members = (f"{json.dumps(k, ensure_ascii=False)}: {part}" for k, part in zip(keys, parts, strict=True))
                yield "{" + ", ".join(members) + "}"
    elif isinstance(value, list):
        inner = [list(itertools.islice(spellings(item), 6)) for item in value]
        for parts in itertools.islice(itertools.product(*inner), 12):
            yield "[" + ", ".join(parts) + "]"
    else:
        yield json.dumps(value, ensure_ascii=False)


def classify(case: dict[str, Any]) -> tuple[str, str]:
    """The verdict on one case, and the keyword if it is refused."""
    try:
        grammar = byte_compiler().json_schema(case["schema"])
    except UnsupportedSchemaError as error:
        return "refused", error.keyword or "(no value possible)"
    verdict = "exact"
    for test in case["tests"]:
        try:
            is_accepted = any(accepts(grammar, text) for text in itertools.islice(spellings(test["data"]), 200))
        except UnicodeEncodeError:
            continue  # half of a surrogate pair has no spelling in UTF-8
        if is_accepted and not test["valid"]:
            return "loosened", ""
        if test["valid"] and not is_accepted:
            verdict = "narrowed"
    return verdict, ""


def main() -> int:
    """Print one table for each draft."""
    num_loosened = 0
    for draft in DRAFTS:
        folder = Path(sys.argv[1]) / draft
        write(f"\n### {draft}\n\n| file | exact | narrowed | refused | refused for |\n|---|---|---|---|---|\n")
        total: Counter[str] = Counter()
        for path in sorted(folder.rglob("*.json")):
            name = str(path.relative_to(folder).with_suffix(""))
            if name in ANNOTATIONS:
                continue
            verdicts = [classify(case) for case in json.loads(path.read_text(encoding="utf-8"))]
            counts = Counter(verdict for verdict, _ in verdicts)
            keywords = ", ".join(sorted({f"`{keyword}`" for _, keyword in verdicts if keyword}))
            write(f"| {name} | {counts['exact']} | {counts['narrowed']} | {counts['refused']} | {keywords} |\n")
            if counts["loosened"]:
                write(f"| **{name}** | loosened: {counts['loosened']} | | | |\n")
            total += counts
        write(f"| **all** | {total['exact']} | {total['narrowed']} | {total['refused']} | |\n")
        num_loosened += total["loosened"]
    return 1 if num_loosened else 0


def write(text: str) -> None:
    sys.stdout.write(text)


if __name__ == "__main__":
    sys.exit(main())
