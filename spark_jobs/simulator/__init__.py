"""A food delivery app that does not exist, day by day.

Read `settings`, `world`, `sessions`, `behaviour`, `mess`, `deliveries`, then the writers. The command is
`python -m spark_jobs.simulate`; `docs/sources.md` says what is modelled.
"""
