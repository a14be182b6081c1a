"""All rules of all suites as Markdown tables: `python -m expectations.gate --list`, kept in docs/gates.md."""

from __future__ import annotations

from expectations.rules.rule import Rule
from expectations.rules.suites import SUITES, suite_of
from spark_jobs.contract.datasets import DATASETS


def rule_tables() -> str:
    """One table a dataset and suite: rule, column, what holds, the bounds."""
    parts = []
    for dataset in DATASETS.values():
        for name in SUITES:
            suite = suite_of(dataset, name)
            parts += [f"### {dataset.name}: {name} ({len(suite.rules)} rules)", ""]
            parts += ["| rule | column | what holds | allowed |", "|---|---|---|---|"]
            parts += [_line(rule) for rule in suite.rules]
            parts.append("")
    return "\n".join(parts)


def _line(rule: Rule) -> str:
    only = f" (with {rule.requires})" if rule.requires else ""
    limit = f" (`{rule.limit}`)" if rule.limit else ""
    cells = (f"`{rule.name}`", f"`{rule.column}`", rule.description, rule.bounds + limit + only)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
