"""Gates: what must hold of events, samples and evaluation results before the next stage may use them.

Reading order: `rules/rule.py` (what a rule is); `rules/events.py` with `event_rows.py`, `samples.py` with
`jagged.py`, `evaluation.py` (the rules); `spark_jobs/contract/limits.py` (their numbers); `measuring/` (Spark
measures the facts in one pass); `judging/` (the trailing days, Great Expectations, the verdict); `gate.py`
(the command).
"""

from spark_jobs.contract import environment

# Great Expectations reads it when it is imported: nothing is sent anywhere.
environment.set_defaults({"GX_ANALYTICS_ENABLED": "false"})
