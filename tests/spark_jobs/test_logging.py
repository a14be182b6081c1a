"""A message of a command is told once, whatever a library has set up when it was imported."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import logging, sys
logging.basicConfig()  # as a library does
kept = logging.StreamHandler(sys.stdout)
logging.getLogger().addHandler(kept)
from spark_jobs.contract import command
for _ in range(2):
    command.configure_logging(for_people=True)
logging.getLogger("spark_jobs.ingest").info("told")
"""


def test_a_message_is_told_once_and_a_handler_of_somebodys_own_stays():
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "told\n"
    assert done.stdout == "told\n"
