"""What a load test is to ask and how hard, with its limits, and questions read from a file. Pure but for `load_questions`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latency.load.clients import ask_url
from rag.errors import RagError

MAX_USERS = 128
MAX_STEPS = 12
MAX_SECONDS_PER_STEP = 600.0
MAX_REQUESTS_PER_STEP = 10_000
MAX_RATE = 500.0  # questions a second, all users together
MAX_IN_FLIGHT = 128  # of the open loop; what is due beyond it waits in our client, and its waiting counts
MAX_WARMUP = 100
MAX_TIMEOUT_SECONDS = 600.0
MAX_FILE_BYTES = 4_000_000
MAX_QUESTIONS = 50_000
MAX_QUESTION_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to ask, and how hard. A step ends after `seconds_per_step` or `requests_per_step`, whichever is first; requests that
    run then may go on for `timeout_seconds`. `open_rate` is questions a second of *each* user.

    `options` are changes to the options of a query: in-process to the defaults, over HTTP keys of the body beside `query`.
    Without `caches` among them the caches are bypassed, where the answerer knows that option. `token` is sent to `api_url` alone
    and kept nowhere.
    """

    users: tuple[int, ...] = (1, 2, 4, 8, 16)
    questions: tuple[str, ...] = ()
    seconds_per_step: float = 20.0
    requests_per_step: int = 500
    open_rate: float | None = None
    warmup_requests: int = 3
    api_url: str | None = None
    token: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout_seconds: float = 120.0
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Everything but the token, the questions by number, first ones and no more."""
        names = ("users", "seconds_per_step", "requests_per_step", "open_rate", "warmup_requests", "api_url", "options")
        data = {name: getattr(self, name) for name in (*names, "timeout_seconds", "seed")}
        return {
            **data,
            "users": list(self.users),
            "options": dict(self.options),
            "authenticated": self.token is not None,
            "questions": len(self.questions),
            "first_questions": [question[:200] for question in self.questions[:5]],
        }


def load_questions(path: Path) -> tuple[str, ...]:
    """The questions of a file. Raises RagError for one that cannot be read or used."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as problem:
        raise bad_input(f"{path.name} cannot be read: {problem.strerror}", "Give a text file with a question a line.") from None
    return read_questions(data, path.name)


def read_questions(data: bytes, name: str = "the file") -> tuple[str, ...]:
    """One question a line, or JSONL objects with `question` (lines that begin with a brace). Empty lines do not count.

    Raises RagError for a file that is too big, binary, has no question, or has a line that cannot be one.
    """
    step = 'Give a text file in UTF-8 with a question a line, or JSONL with {"question": "…"}.'
    if len(data) > MAX_FILE_BYTES:
        raise bad_input(
            f"{name} has more than {MAX_FILE_BYTES // 1_000_000} MB", "A load test repeats its questions: give fewer."
        )
    if b"\0" in data:
        raise bad_input(f"{name} is binary, no text", step)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise bad_input(f"{name} is no text in UTF-8", step) from None
    lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
    found = [_question(line, f"line {number} of {name}", step) for number, line in lines if line]
    if not found:
        raise bad_input(f"{name} has no question", step)
    if len(found) > MAX_QUESTIONS:
        raise bad_input(f"{name} has {len(found):,} questions; at most {MAX_QUESTIONS:,} are taken", "Give fewer.")
    return tuple(found)


def _question(line: str, where: str, step: str) -> str:
    if line.startswith("{"):
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            raise bad_input(f"{where} begins with a brace and is no JSON", step) from None
        line = data.get("question")
        if not isinstance(line, str) or not line.strip():
            raise bad_input(f"{where} has no text under `question`", step)
    if len(line) > MAX_QUESTION_CHARS:
        raise bad_input(f"{where} has {len(line):,} characters; at most {MAX_QUESTION_CHARS:,} are taken", "Shorten it.")
    return line


def checked(plan: LoadPlan) -> LoadPlan:
    """The plan, if it can be run. Raises RagError that names the wrong value and its limit."""
    if not plan.questions:
        raise bad_input("there is no question to ask", "Write questions, or give a file.")
    if not plan.users or len(plan.users) > MAX_STEPS:
        raise bad_input(f"there are {len(plan.users)} steps", f"Give 1 to {MAX_STEPS} numbers of users.")
    if list(plan.users) != sorted(set(plan.users)):
        raise bad_input("the numbers of users do not rise", "Give each number once, smallest first: 1,2,4,8.")
    within = (
        ("users", min(plan.users), 1, MAX_USERS),
        ("users", max(plan.users), 1, MAX_USERS),
        ("seconds_per_step", plan.seconds_per_step, 0.1, MAX_SECONDS_PER_STEP),
        ("requests_per_step", plan.requests_per_step, 1, MAX_REQUESTS_PER_STEP),
        ("warmup_requests", plan.warmup_requests, 0, MAX_WARMUP),
        ("timeout_seconds", plan.timeout_seconds, 0.1, MAX_TIMEOUT_SECONDS),
        ("open_rate", plan.open_rate if plan.open_rate is not None else 1, 0.001, MAX_RATE),
        ("open_rate x users", (plan.open_rate or 0) * max(plan.users), 0, MAX_RATE),
    )
    for name, value, low, high in within:
        if not low <= value <= high:
            raise bad_input(f"{name} is {value:g}", f"It is {low:g} to {high:g}.")
    if plan.open_rate is None and plan.requests_per_step < 2 * max(plan.users):
        raise bad_input(f"requests_per_step is {plan.requests_per_step}", "Give at least two for each user.")
    if plan.api_url is not None:
        ask_url(plan.api_url)
    return plan


def longest_seconds(plan: LoadPlan) -> float:
    """The most that the steps ask for, without what the last requests of each step take to end."""
    return len(plan.users) * plan.seconds_per_step


def bad_input(message: str, next_step: str) -> RagError:
    return RagError(message, kind="bad_input", next_step=next_step)
