"""What options and questions can be. Knows no settings: limits come in as values."""

from __future__ import annotations

from dataclasses import replace

from rag.errors import RagError
from rag.types import Options


def checked(options: Options, question: str, max_question_chars: int) -> Options:
    """The options with `keep` at most `candidates`. Raises RagError bad_input that names the wrong value."""
    problem = None
    if not question.strip():
        problem = ("the question is empty", "Type a question.")
    elif len(question) > max_question_chars:
        limit = f"{max_question_chars:,}"
        problem = (
            f"the question has {len(question):,} characters; at most {limit} are taken",
            "Shorten it (query.max_question_chars).",
        )
    elif options.hyde not in ("off", "on", "auto"):
        problem = (f"hyde is {options.hyde!r}", "Choose off, on or auto.")
    elif options.caches not in ("use", "bypass", "refresh"):
        problem = (f"caches is {options.caches!r}", "Choose use, bypass or refresh.")
    elif not 1 <= options.candidates <= 1000:
        problem = (f"candidates is {options.candidates}", "Choose 1 to 1000.")
    elif not 1 <= options.keep <= 100:
        problem = (f"keep is {options.keep}", "Choose 1 to 100.")
    if problem:
        raise RagError(problem[0], kind="bad_input", next_step=problem[1])
    return replace(options, keep=min(options.keep, options.candidates))
