"""Kills every stage at every one of its phases, runs it again, compares the state with an undisturbed run's.

    python tests/end_to_end/kill_points.py [--stages ingest build_samples] [--out points.json]

The daily chain of commands is run once, undisturbed, with `MTGR_TRACE_PHASES` set: that run says which phases
each stage reaches and what state each stage leaves. Then, for each (stage, phase), the state before the stage
is put back, the stage is killed there by SIGKILL and run again. The point holds when the rerun succeeds and
leaves equal tables (hash over rows), equal weights, equally many registered versions and equal aliases.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DATASET = "foodlog"
DAYS = ("2026-03-01", "2026-03-02", "2026-03-03")
PRESET = "tiny"


def python(module: str, *arguments: str) -> list[str]:
    """Command line of one step."""
    return [sys.executable, "-m", module, "--dataset", DATASET, *arguments]


def steps(ds: str) -> list[tuple[str, list[str]]]:
    """(stage, command) of the data steps of a day, in order."""
    return [
        ("ingest", python("spark_jobs.ingest", "--ds", ds)),
        ("gate_events", python("expectations.gate", "--suite", "events", "--ds", ds)),
        ("build_samples", python("spark_jobs.build_samples", "--ds", ds, "--late")),
        ("gate_samples", python("expectations.gate", "--suite", "samples", "--ds", ds)),
    ]


def training_steps(ds: str, preset: str) -> list[tuple[str, list[str]]]:
    """(stage, command) of the training steps of a day, in order."""
    of_preset = ("--ds", ds, "--preset", preset)
    return [
        ("train", python("model.train", *of_preset)),
        ("evaluate", python("model.evaluate", *of_preset)),
        ("gate_evaluation", python("expectations.gate", "--suite", "evaluation", "--ds", ds)),
        ("register", python("model.register", *of_preset)),
        ("promote", python("model.promote", *of_preset)),
    ]


@contextlib.contextmanager
def spark_connect(log: Path) -> Iterator[str]:
    """A Spark Connect server on a free loopback port; yields its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "spark_jobs.session", "serve", "--port", str(port)]
    with log.open("w") as stderr:
        server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line.startswith("ready "):
            raise RuntimeError(f"the Spark Connect server did not start; see {log}")
        yield line.split()[1]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


class Chain:
    """The commands of a chain over one `var` folder, run with or without a kill."""

    def __init__(self, work: Path, remote: str) -> None:
        self.work = work
        self.var = work / "var"
        self.environment = os.environ | {
            "MTGR_VAR": str(self.var),
            "SPARK_REMOTE": remote,
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }
        for name in ("MTGR_LAKE", "MTGR_RUNS", "MLFLOW_TRACKING_URI", "MTGR_KILL_AT", "MTGR_TRACE_PHASES"):
            self.environment.pop(name, None)

    def run(self, command: Sequence[str], **environment: str) -> int:
        """Runs one step; its output goes to `steps.log`. Returns its exit code, negative for a signal."""
        with (self.work / "steps.log").open("a") as log:
            log.write(f"$ {' '.join(command)} {environment}\n")
            log.flush()
            done = subprocess.run(
                command, cwd=ROOT, env=self.environment | environment, stdout=log, stderr=log, check=False
            )
        return done.returncode

    def must(self, command: Sequence[str], **environment: str) -> None:
        """Runs one step that has to succeed."""
        code = self.run(command, **environment)
        if code:
            output = (self.work / "steps.log").read_text()[-4000:]
            raise RuntimeError(f"exit code {code} of {' '.join(command)}:\n{output}")

    def save(self, name: str) -> None:
        """Keeps the state of the `var` folder under a name."""
        shutil.copytree(self.var, self.work / "saved" / name)

    def restore(self, name: str) -> None:
        """Puts a kept state back, at the same path: the registry holds absolute paths."""
        shutil.rmtree(self.var)
        shutil.copytree(self.work / "saved" / name, self.var)

    def state(self) -> dict[str, Any]:
        """What has to be equal after a rerun: table contents, weights, verdicts, versions and aliases."""
        result: dict[str, Any] = {}
        lake = self.var / "lake" / DATASET
        for log in sorted(lake.rglob("_delta_log")):
            result[f"table {log.parent.relative_to(lake)}"] = table_hash(log.parent)
        for weights in sorted((self.var / "runs").rglob("weights.safetensors")):
            name = str(weights.parent.relative_to(self.var / "runs"))
            result[f"weights {name}"] = hashlib.sha256(weights.read_bytes()).hexdigest()
            seen = json.loads((weights.parent / "train.json").read_text())["seen_days"]
            result[f"days seen {name}"] = sorted(seen)
        for verdict in sorted((self.var / "gates").rglob("*.json")):
            result[f"verdict {verdict.relative_to(self.var)}"] = json.loads(verdict.read_text())["success"]
        return result | self.registry()

    def registry(self) -> dict[str, Any]:
        """Registered versions by preset and day, with the aliases of each; read in a process of its own."""
        store = self.var / "mlflow" / "mlflow.db"
        if not store.exists():
            return {}
        code = (
            "import json, sys\n"
            "from mlflow import MlflowClient\n"
            "client = MlflowClient(sys.argv[1])\n"
            "names = [m.name for m in client.search_registered_models()]\n"
            "models = {n: client.get_registered_model(n).aliases for n in names}\n"
            "found = {f'version {n}/{v.version}': [v.tags.get('preset'), v.tags.get('ds'), v.status,\n"
            "    sorted(a for a, w in models[n].items() if str(w) == str(v.version))]\n"
            "    for n in names for v in client.search_model_versions(f\"name='{n}'\")}\n"
            "print(json.dumps(found))\n"
        )
        command = [sys.executable, "-c", code, f"sqlite:///{store}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=self.work)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def table_hash(path: Path) -> str:
    """Hash over the rows of a Delta table, whatever their order and files."""
    from deltalake import DeltaTable

    rows = DeltaTable(str(path)).to_pyarrow_table().to_pylist()
    lines = sorted(json.dumps(row, sort_keys=True, default=str) for row in rows)
    return f"{len(lines)} rows {hashlib.sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


def difference(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What differs between two states, in words; empty when they are equal."""
    return [
        f"{key}: expected {expected.get(key)}, found {found.get(key)}"
        for key in sorted(expected.keys() | found.keys())
        if expected.get(key) != found.get(key)
    ]


def reference(chain: Chain, wanted: set[str]) -> list[tuple[str, list[str], list[str], dict[str, Any]]]:
    """Runs the chain undisturbed; returns (stage, command, phases, state after) of the last day's steps."""
    chain.must(python("spark_jobs.simulate", "--from", DAYS[0], "--to", DAYS[-1]))
    for ds in DAYS[:-1]:
        for _, command in steps(ds):
            chain.must(command)
    order = steps(DAYS[-1])
    if wanted & {stage for stage, _ in training_steps(DAYS[-1], PRESET)}:
        for _, command in training_steps(DAYS[-2], "user_tower"):
            chain.must(command)
        order += training_steps(DAYS[-1], PRESET)
    result = []
    for stage, command in order:
        trace = chain.work / f"{stage}.phases"
        chain.save(f"before_{stage}")
        chain.must(command, MTGR_TRACE_PHASES=str(trace))
        if stage in wanted:
            phases = list(dict.fromkeys(trace.read_text().split())) if trace.exists() else []
            result.append((stage, command, phases, chain.state()))
        if wanted <= {done for done, *_ in result}:
            break
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when every point holds, 1 when one does not."""
    stages = [s for s, _ in (*steps(DAYS[-1]), *training_steps(DAYS[-1], PRESET))]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stages", nargs="+", choices=stages, default=stages)
    parser.add_argument("--phases", nargs="+", help="only these phases, e.g. ingest:before_commit")
    parser.add_argument("--out", type=Path, help="write the table of points there as JSON")
    arguments = parser.parse_args(argv)
    points = []
    with tempfile.TemporaryDirectory(prefix="mtgr-kill-") as folder:
        work = Path(folder)
        with spark_connect(work / "spark.log") as remote:
            chain = Chain(work, remote)
            for stage, command, phases, expected in reference(chain, set(arguments.stages)):
                for phase in phases:
                    if arguments.phases and phase not in arguments.phases:
                        continue
                    started = time.monotonic()
                    chain.restore(f"before_{stage}")
                    killed = chain.run(command, MTGR_KILL_AT=phase)
                    rerun = chain.run(command)
                    wrong = difference(expected, chain.state())
                    if killed != -signal.SIGKILL:
                        wrong.insert(0, f"was not killed but ended with {killed}")
                    if rerun:
                        wrong.insert(0, f"the rerun ended with {rerun}")
                    points.append({"stage": stage, "phase": phase, "holds": not wrong, "difference": wrong})
                    mark = "holds" if not wrong else "BROKEN: " + "; ".join(wrong)
                    sys.stdout.write(f"{stage:16} {phase:40} {time.monotonic() - started:5.0f} s  {mark}\n")
                    sys.stdout.flush()
        broken = [point for point in points if not point["holds"]]
        if broken:
            kept = ROOT / "var" / "kill_points.log"
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(work / "steps.log", kept)
            sys.stdout.write(f"the output of all steps is kept in {kept}\n")
    if arguments.out:
        arguments.out.write_text(json.dumps({"points": points, "count": len(points)}, indent=1) + "\n")
    sys.stdout.write(f"{len(points)} kill points, {len(broken)} broken\n")
    return 1 if broken or not points else 0


if __name__ == "__main__":
    sys.exit(main())
