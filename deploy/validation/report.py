"""A report for people and for pipelines: Markdown, JUnit XML, one HTML file. Pure; whatever a server said is escaped.

JUnit knows no warning: a warning is a test that passed with its words in `system-out`, and what is not applicable is skipped.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html import escape
from itertools import groupby
from xml.etree import ElementTree as xml

from deploy.validation.types import Item, Outcome, Report, Result
from rag.errors import RagError

WORDS: dict[Outcome, str] = {
    "failed": "FAILED",
    "warning": "warning",
    "passed": "passed",
    "not_applicable": "not applicable",
}
FORMATS = (".html", ".md", ".junit.xml", ".json")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")  # what XML 1.0 has no way to write
_CODE = re.compile("`([^`]+)`")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~])")


def format_of(name: str) -> str:
    """The format that a file's name asks for. Raises RagError bad_input."""
    found = next((each for each in FORMATS if name.lower().endswith(each)), None)
    if found is None:
        step = f"End its name in {', '.join(FORMATS)}."
        raise RagError(f"what kind of report {name!r} is to be is not known", kind="bad_input", next_step=step)
    return found


def summary(report: Report) -> str:
    """`25 passed, 1 warning, 2 failed, 5 not applicable`."""
    warnings = report.count("warning")
    return (
        f"{report.count('passed')} passed, {warnings} warning{'s' * (warnings != 1)}, {report.count('failed')} failed, "
        f"{report.count('not_applicable')} not applicable"
    )


def started(report: Report) -> str:
    return datetime.fromtimestamp(report.started_at_unix, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# 1) Markdown


def markdown(report: Report) -> str:
    lines = ["# Validation", "", f"{started(report)} · RAG Deck {_md(report.version)} · {summary(report)}", ""]
    for group, results in groupby(report.results, key=lambda each: each.group):
        lines += [f"## {_md(group)}", "", "| | check | outcome | evidence | seconds |", "|---|---|---|---|---:|"]
        listed = list(results)
        lines += [
            f"| {each.code} | {_cell(each.title)} | {WORDS[each.outcome]} | {_cell(each.evidence)} | {each.seconds:.2f} |"
            for each in listed
        ]
        lines.append("")
        for each in listed:
            lines += _markdown_details(each)
    return "\n".join(lines)


def _markdown_details(result: Result) -> list[str]:
    wrong = [item for item in result.items if item.outcome in ("failed", "warning")]
    lines = []
    if wrong:
        lines = [f"**{result.code} {_md(result.title)}**", ""]
        for item in wrong:
            lines.append(f"- {WORDS[item.outcome]}: {_md(_named(item))}  ")
            lines.append(f"  Cause: {_md(item.cause)}  ")
            lines.append(f"  Cure: {_md(item.cure)}")
        lines.append("")
    if result.table:
        head, *rows = result.table
        lines += [f"| {' | '.join(map(_cell, head))} |", "|" + "---|" * len(head)]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows] + [""]
    return lines


def _md(text: str) -> str:
    """Words as Markdown shows them, and what stands between backticks as code; no other character has a meaning."""
    parts = _CODE.split(" ".join(text.split()))
    return "".join(f"`{part}`" if number % 2 else _MARKDOWN.sub(r"\\\1", part) for number, part in enumerate(parts))


def _cell(text: str) -> str:
    """The same within a table, where a bar ends the cell in code too."""
    return _CODE.sub(lambda code: code[0].replace("|", r"\|"), _md(text))


def _named(item: Item) -> str:
    return f"{item.subject}: {item.evidence}" if item.subject else item.evidence


# 2) JUnit


def junit(report: Report) -> str:
    """One suite; a test a check, its class the group."""
    root = xml.Element("testsuites")
    suite = xml.SubElement(
        root,
        "testsuite",
        name="ragdeck.validate",
        tests=str(len(report.results)),
        failures=str(report.count("failed")),
        errors="0",
        skipped=str(report.count("not_applicable")),
        time=f"{sum(each.seconds for each in report.results):.3f}",
        timestamp=datetime.fromtimestamp(report.started_at_unix, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
    )
    for each in report.results:
        _case(suite, each)
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _case(suite: xml.Element, result: Result) -> None:
    case = xml.SubElement(
        suite,
        "testcase",
        classname=f"validate.{_xml(result.group).replace(' ', '_')}",
        name=_xml(f"{result.code} {result.title}"),
        time=f"{result.seconds:.3f}",
    )
    details = "\n".join(_plain(item) for item in result.items)
    if result.outcome == "failed":
        xml.SubElement(case, "failure", message=_xml(result.evidence), type=result.code).text = _xml(details)
    elif result.outcome == "not_applicable":
        xml.SubElement(case, "skipped", message=_xml(result.evidence))
    elif details:
        xml.SubElement(case, "system-out").text = _xml(details)


def _plain(item: Item) -> str:
    line = f"{WORDS[item.outcome]}: {_named(item)}"
    return line if not item.cause else f"{line}\n  cause: {item.cause}\n  cure: {item.cure}"


def _xml(text: str) -> str:
    return _UNPRINTABLE.sub("\ufffd", text)


# 3) HTML

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d8dce2, #3a4048); }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .3rem; }
section { border-top: 1px solid var(--line); padding: .5rem 0; overflow-wrap: anywhere; }
code { font-family: ui-monospace, monospace; font-size: .92em; background: light-dark(#eef0f3, #262b31); padding: 0 .25em; }
.soft { color: light-dark(#5d6670, #a0a7b0); } .code { font-family: ui-monospace, monospace; }
.failed { color: light-dark(#c01f3f, #ff6b81); } .warning { color: light-dark(#b4460c, #ff9a5c); }
.passed { color: light-dark(#0b7a53, #3fbf8f); } .not_applicable { color: light-dark(#5d6670, #8d949d); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .1rem .8rem .1rem 0; }
ul { margin: .2rem 0; padding-left: 1.2rem; } p { margin: .2rem 0; }
"""


def html(report: Report) -> str:
    """One file without any reference outside."""
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>Validation {escape(started(report))}</title><style>{_STYLE}</style></head><body><h1>Validation</h1>",
        f"<p>{escape(started(report))} · RAG Deck {escape(report.version)} · {escape(summary(report))}</p>",
    ]
    for group, results in groupby(report.results, key=lambda each: each.group):
        parts.append(f"<h2>{escape(group)}</h2>")
        parts += [_section(each) for each in results]
    return "".join([*parts, "</body></html>\n"])


def with_code(text: str) -> str:
    """Escaped for HTML, and what stands between backticks as code."""
    return _CODE.sub(r"<code>\1</code>", escape(text))


def commands(*texts: str) -> tuple[str, ...]:
    """What stands between backticks and is more than a word, each once: to be copied."""
    found = (each.strip() for text in texts for each in _CODE.findall(text))
    return tuple(dict.fromkeys(each for each in found if " " in each))


def _section(result: Result) -> str:
    items = "".join(_li(item) for item in result.items) or f"<li>{with_code(result.reason)}</li>"
    return (
        f'<section id="{escape(result.code)}"><p><span class="code">{escape(result.code)}</span> <strong>{escape(result.title)}'
        f'</strong> <span class="{result.outcome}">{WORDS[result.outcome]}</span> '
        f'<span class="soft">{result.seconds:.2f} s · {with_code(result.proves)}</span></p>'
        f"<ul>{items}</ul>{_table(result)}</section>"
    )


def _li(item: Item) -> str:
    why = f"<p>Cause: {with_code(item.cause)}</p><p>Cure: {with_code(item.cure)}</p>" if item.cause else ""
    return f'<li dir="auto"><span class="{item.outcome}">{WORDS[item.outcome]}</span> {with_code(_named(item))}{why}</li>'


def _table(result: Result) -> str:
    if not result.table:
        return ""
    head, *rows = result.table
    top = "".join(f"<th>{with_code(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{with_code(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
