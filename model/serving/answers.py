"""How requests were answered: counts and times by path, in the text that Prometheus reads."""

from __future__ import annotations

from collections import Counter, defaultdict

_BOUNDS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Answers:
    """Counts of a front."""

    def __init__(self) -> None:
        self._answers: Counter[tuple[str, int]] = Counter()
        self._within: Counter[tuple[str, float]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def count(self, path: str, status: int, seconds: float | None = None) -> None:
        """Notes an answer, and how long it took where somebody waited."""
        self._answers[path, status] += 1
        if seconds is None:
            return
        self._seconds[path] += seconds
        for bound in _BOUNDS_S:
            if seconds <= bound:
                self._within[path, bound] += 1

    def lines(self) -> list[str]:
        """`mtgr_answers_total` by path and code, and `mtgr_seconds` by path."""
        lines = ["# TYPE mtgr_answers_total counter"]
        lines += [f'mtgr_answers_total{{path="{p}",code="{c}"}} {n}' for (p, c), n in self._answers.items()]
        lines.append("# TYPE mtgr_seconds histogram")
        for path in self._seconds:
            total = sum(n for (of, _), n in self._answers.items() if of == path)
            lines += [
                f'mtgr_seconds_bucket{{path="{path}",le="{bound}"}} {self._within[path, bound]}'
                for bound in _BOUNDS_S
            ]
            lines += [
                f'mtgr_seconds_bucket{{path="{path}",le="+Inf"}} {total}',
                f'mtgr_seconds_sum{{path="{path}"}} {self._seconds[path]}',
                f'mtgr_seconds_count{{path="{path}"}} {total}',
            ]
        return lines
