"""A food delivery app that does not exist, day by day: `settings`, `world`, `behaviour`, `mess`, `deliveries`.

The command is `python -m spark_jobs.simulate`; `docs/sources.md` says what is modelled.
"""
