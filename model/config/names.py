"""Names of the presets for commands that do not load PyTorch, which takes ten seconds of a core."""

from __future__ import annotations

import ast
from pathlib import Path


def plain_presets() -> list[str]:
    """Presets that fit every dataset: functions of `presets.py` without arguments that return a `Config`.

    None where one of them names embedding tables: whether a dataset has those, only the preset itself knows.
    """
    tree = ast.parse((Path(__file__).parent / "presets.py").read_text(encoding="utf-8"))
    if any(isinstance(node, ast.keyword) and node.arg == "tables" for node in ast.walk(tree)):
        return []
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and not node.args.args
        and node.returns is not None
        and ast.unparse(node.returns) == "Config"
    ]
