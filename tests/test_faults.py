"""docs/faults.md names tests that exist, says which are slow, and leaves no fault out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
NUMBERS = {*range(1, 54), *range(69, 86)}
ROW = re.compile(r"^\| (\d+) \| (.*) \|$", re.MULTILINE)
NAMED = re.compile(r"`(test_\w+\.py)::(test_\w+)`( \(slow\))?")


def known_tests() -> dict[tuple[str, str], bool]:
    """(file, test) -> whether it is a slow one."""
    found: dict[tuple[str, str], bool] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        marks = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
        module_is_slow = any(mark.startswith("pytestmark") and "mark.slow" in mark for mark in marks)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                is_slow = any("mark.slow" in ast.unparse(one) for one in node.decorator_list)
                assert (path.name, node.name) not in found, f"{path.name}::{node.name} stands twice"
                found[path.name, node.name] = module_is_slow or is_slow
    return found


def test_every_named_test_exists_and_is_slow_where_the_page_says_so() -> None:
    known = known_tests()
    named = NAMED.findall(PAGE)
    assert len(named) == PAGE.count("::")
    assert {f"{file}::{name}" for file, name, _ in named if (file, name) not in known} == set()
    wrong = {f"{file}::{name}" for file, name, slow in named if known[file, name] != bool(slow)}
    assert wrong == set()


def test_every_fault_has_a_test_or_cannot_happen() -> None:
    rows = ROW.findall(PAGE)
    assert len({number for number, _ in rows}) == len(rows), "a number stands twice"
    assert {number for number, _ in rows} >= {str(number) for number in NUMBERS}
    without = {number for number, text in rows if not NAMED.search(text) and "cannot happen" not in text}
    assert without == set()
    traps = [line for line in PAGE.split("## Ingest")[0].splitlines() if line.startswith("| ")][1:]
    assert len(traps) > 20
    assert [line for line in traps if not NAMED.search(line)] == []
