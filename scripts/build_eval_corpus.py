"""Build `samples/field-guide-eval/corpus.jsonl` from the Markdown documents of `samples/field-guide`.

One line per `##` section: `{"_id": "<path without .md>#<section slug>", "title": "<document title>: <heading>",
"text": "<section body>"}`, sorted by id. The text before the first section (the introduction) opens the first
section's text. With `--check` nothing is written; the exit status is 1 when the file on disk differs or when a
qrels row names an id that the corpus does not have.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
GUIDE = SAMPLES / "field-guide"
EVALUATION = SAMPLES / "field-guide-eval"


def slug(heading: str) -> str:
    """Return the heading in lower case, runs of anything but unicode letters and digits replaced by one `-`."""
    return re.sub(r"[\W_]+", "-", heading.lower()).strip("-")


def flow(markdown: str) -> str:
    """Return the paragraphs of `markdown` as single lines, separated by a blank line each."""
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", markdown))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def sections(document: Path, root: Path) -> Iterator[dict[str, str]]:
    """Yield one corpus record per `##` section of the document."""
    head, *parts = re.split(r"(?m)^## +", document.read_text(encoding="utf-8"))
    title, _, introduction = head.strip().partition("\n")
    if not title.startswith("# ") or not parts:
        raise ValueError(f"{document}: expected a '# Title' line and at least one '## Section'")
    path = document.relative_to(root).with_suffix("").as_posix()
    for position, part in enumerate(parts):
        heading, _, body = part.partition("\n")
        text = f"{introduction}\n\n{body}" if position == 0 else body
        yield {
            "_id": f"{path}#{slug(heading)}",
            "title": f"{title[2:].strip()}: {heading.strip()}",
            "text": flow(text),
        }


def corpus(root: Path) -> list[dict[str, str]]:
    """Return all records below `root`, sorted by id; two sections with one id are an error."""
    records = sorted(
        (record for document in root.rglob("*.md") for record in sections(document, root)),
        key=lambda record: record["_id"],
    )
    for first, second in pairwise(records):
        if first["_id"] == second["_id"]:
            raise ValueError(f"two sections with the id {first['_id']}")
    return records


def missing_ids(qrels: Path, known: set[str]) -> list[str]:
    """Return the corpus ids that the qrels file names and the corpus lacks, in file order."""
    rows = (line.split("\t") for line in qrels.read_text(encoding="utf-8").splitlines()[1:] if line.strip())
    return [row[1] for row in rows if row[1] not in known]


def main(arguments: list[str] | None = None) -> int:
    """Write the corpus, or compare it with what is on disk; return the exit status."""
    parser = argparse.ArgumentParser(description="Build the evaluation corpus from samples/field-guide.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date or ids missing")
    check = parser.parse_args(arguments).check
    records = corpus(GUIDE)
    content = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    target = EVALUATION / "corpus.jsonl"
    if not check:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, encoding="utf-8")
        print(f"{len(records)} sections written to {target}")
        return 0
    stale = not target.exists() or target.read_text(encoding="utf-8") != content
    if stale:
        print(f"{target} is out of date: run python scripts/build_eval_corpus.py", file=sys.stderr)
    missing = missing_ids(EVALUATION / "qrels" / "test.tsv", {record["_id"] for record in records})
    for identifier in missing:
        print(f"qrels name an unknown section: {identifier}", file=sys.stderr)
    return 1 if stale or missing else 0


if __name__ == "__main__":
    sys.exit(main())
