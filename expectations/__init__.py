"""Gates: what must hold of events, samples and evaluation results before the next stage may use them.

Reading order: `rules.py` (what a rule is); `event_rules.py` with `event_row_rules.py`, `sample_rules.py` with
`jagged_rules.py`, `evaluation_rules.py` (the rules); `limits.py` (their numbers for each dataset); `facts.py`
(Spark measures them in one pass); `baseline.py` (the trailing days); `judge.py` and `validation.py` (Great
Expectations judges the facts) with `offline_docs.py`; `verdict.py`; `gate.py` (the command).
"""
