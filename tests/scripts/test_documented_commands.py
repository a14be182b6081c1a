"""Commands that the documentation names exist; the cheap ones are run."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("[cd]*/*.md"))]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_make_targets_exist(document):
    text = document.read_text()
    blocks = re.findall(r"```.*?\n(.*?)```", text, re.DOTALL)
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    inline = [span for line in prose.splitlines() for span in re.findall(r"`([^`]+)`", line)]
    code = [*blocks, *inline, *re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE)]
    named = {target for part in code for target in re.findall(r"^(?:\$ )?make ([a-z][a-z-]+)", part, re.M)}
    assert named <= TARGETS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_modules_exist(document):
    packages = "spark_jobs|expectations|model|scripts|hstu_ops|benchmarks"
    named = set(re.findall(rf"-m ((?:{packages})\.[a-z_.]+[a-z_])", document.read_text()))
    assert {name for name in named if importlib.util.find_spec(name) is None} == set()


def test_help_lists_every_target():
    command = ["make", "--no-print-directory", "help"]  # the tests themselves may run under make
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert listed == TARGETS


def test_setup_scripts_are_valid_shell():
    for path in (ROOT / "scripts" / "setup.sh", ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", str(path)], check=True)
        assert path.stat().st_mode & 0o111


def test_what_make_run_prints_is_what_it_printed():
    printed = (ROOT / "benchmarks" / "results" / "make_run.txt").read_text()
    table = printed[printed.index("day         preset") :].rstrip()
    assert f"```\n{table}\n```" in (ROOT / "README.md").read_text()
