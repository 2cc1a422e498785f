"""Write the tables of docs/conformance.md: our own suite, and the schedulers of the installed diffusers.

    python scripts/verify_diffusers.py

Refuses to write a failure whose cause is not told in ``unstir/verify/diffusers_adapter.py``: every one of them was
looked up in the source of diffusers by a person.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

from unstir.verify.statements import STATEMENTS
from unstir.verify.suite import Report, Row, plan, verify
from unstir.verify.target import load_cases

PAGE = Path(__file__).resolve().parent.parent / "docs" / "conformance.md"
MODULE = "unstir.verify.diffusers_adapter"
KINDS = {
    "bug": "Bugs",
    "limit that is not told": "Limits that are not told",
    "told by a warning": "Told by a warning",
    "documented default": "Documented defaults",
    "by design": "By design",
}


def main() -> None:
    """Measure both, and replace what stands between the marks."""
    own = verify(plan())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = verify(plan(load_cases(f"{MODULE}:every")))
    unknown = [f"{row.id} {row.target}: {row.measured}" for row in theirs.failures if not row.note]
    if unknown:
        raise SystemExit("look these up in the source first:\n" + "\n".join(unknown))
    text = PAGE.read_text(encoding="utf-8")
    text = _between(text, "own", _own(own))
    text = _between(text, "diffusers", f"{_summary(theirs)}\n\n{_causes(theirs)}")
    PAGE.write_text(text, encoding="utf-8")


def _between(text: str, mark: str, table: str) -> str:
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL)


def _own(report: Report) -> str:
    lines = [_versions(report), "", "| | statement | passed | failed | not applicable |", "|---|---|---|---|---|"]
    for name, statement in STATEMENTS.items():
        rows = [row for row in report.rows if row.id == name]
        counts = [sum(row.status == status for row in rows) for status in ("passed", "failed", "not_applicable")]
        lines.append(f"| {name} | {statement.sentence} | {' | '.join(str(count or '') for count in counts)} |")
    return "\n".join(lines)


def _summary(report: Report) -> str:
    lines = [_versions(report), "", "| factory | scheduler | passed | n/a | fails |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(row.target for row in report.rows):
        rows = [row for row in report.rows if row.target == name]
        passed, skipped = (sum(row.status == status for row in rows) for status in ("passed", "not_applicable"))
        fails = ", ".join(row.id for row in rows if row.status == "failed")
        lines.append(f"| `{_factory(rows[0])}` | {name.removeprefix('diffusers ')} | {passed} | {skipped} | {fails} |")
    return "\n".join(lines)


def _causes(report: Report) -> str:
    parts: list[str] = []
    notes = dict.fromkeys(row.note for row in report.failures)
    for kind, title in KINDS.items():
        told = [note for note in notes if note.startswith(kind)]
        if told:
            parts.append(f"### {title}")
        parts += [_cause(note, kind, [row for row in report.failures if row.note == note]) for note in told]
    return "\n\n".join(parts)


def _cause(note: str, kind: str, rows: Sequence[Row]) -> str:
    lines = [f"**{note.removeprefix(kind).lstrip(': ')}**, shown by `{rows[0].command}`", ""]
    lines += ["| statement | factory | measured | expected |", "|---|---|---|---|"]
    told: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        told.setdefault((row.id, row.measured, row.expected), []).append(f"`{_factory(row)}`")
    lines += [
        f"| {key[0]} | {', '.join(names)} | {key[1]} | {key[2]} |" for key, names in sorted(told.items(), key=_order)
    ]
    return "\n".join(lines)


def _order(item: tuple[tuple[str, str, str], list[str]]) -> int:
    return list(STATEMENTS).index(item[0][0])


def _factory(row: Row) -> str:
    return row.command.split(":", 1)[1].split(" ", 1)[0]


def _versions(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    counts = f"{report.count('passed')} passed, {report.count('failed')} failed, {report.count('not_applicable')} n/a"
    return f"Measured with {versions}: {counts}."


if __name__ == "__main__":
    main()
