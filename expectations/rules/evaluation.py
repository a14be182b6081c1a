"""The rules for an evaluation: whether its numbers may decide about a model, not whether the model is good.

Scores must be probabilities that vary, are calibrated and spread as on the days before; metrics must be
defined, over enough users, equal to a recount from the scores, and not too good to be true. Whether the
candidate beats the champion is for `model.promote` to say.
"""

from __future__ import annotations

from expectations.rules.rule import Fact, Rule, Suite, Trailing
from spark_jobs.contract.features import Dataset
from spark_jobs.contract.limits import Limits

LABELS = {"ctr": "label_click", "ctcvr": "label_conversion"}
SCORES = tuple(f"{task}_{state}" for state in ("frozen", "live") for task in LABELS)
METRICS = tuple(f"{task}_{metric}" for task in LABELS for metric in ("auc", "gauc"))
DEFINED = (*METRICS, *(f"{task}_{metric}" for task in LABELS for metric in ("gauc_mean", "log_loss")))
RANKERS = ("candidate", "champion")
_LEAST_SPREAD = 1e-6
_RECOUNT = 1e-6


def evaluation_suite(dataset: Dataset, limits: Limits) -> Suite:
    """The suite for one day's evaluation of a dataset's candidate and champion."""
    rules = (
        Rule(
            name="rows_present",
            column="(rows)",
            description="the evaluation has scored candidates",
            fact="rows",
            low=1,
        ),
        Rule(
            name="own_day",
            column="ds",
            description="dataset, preset and day of the evaluation are those of its run: fields that differ",
            fact="strange_fields",
            high=0,
        ),
        Rule(
            name="same_rows",
            column="impression_id",
            description="candidate and champion scored the same rows with the same labels: rows that differ",
            fact="different_rows",
            high=0,
            requires="champion",
        ),
        *_score_rules(limits),
        *_metric_rules(limits),
    )
    return Suite(
        name="evaluation",
        dataset=dataset.name,
        table="evaluation",
        facts=tuple(
            Fact(name=name) for name in dict.fromkeys((*(rule.fact for rule in rules), "effective_users"))
        ),
        rules=rules,
    )


def _score_rules(limits: Limits) -> list[Rule]:
    rules = []
    for ranker in RANKERS:
        requires = "champion" if ranker == "champion" else ""
        for score in SCORES:
            rules.append(
                Rule(
                    name=f"{ranker}_{score}_values",
                    column=f"{ranker} {score}",
                    description="every score is finite and in (0, 1): scores that are not",
                    fact=f"{ranker}_{score}_outside",
                    high=0,
                    requires=requires,
                )
            )
            rules.append(
                Rule(
                    name=f"{ranker}_{score}_spread",
                    column=f"{ranker} {score}",
                    description="the scores are not constant: from their 5 % to their 95 % quantile",
                    fact=f"{ranker}_{score}_spread",
                    low=_LEAST_SPREAD,
                    requires=requires,
                )
            )
    for task, label in LABELS.items():
        rules.append(
            Rule(
                name=f"candidate_{task}_calibrated",
                column=f"candidate {task}_live",
                description=f"COPC: sum of {label} over sum of scores",
                fact=f"candidate_{task}_copc",
                low=limits.copc[0],
                high=limits.copc[1],
                limit="copc",
            )
        )
        rules.append(
            Rule(
                name=f"candidate_{task}_drift",
                column=f"candidate {task}_live",
                description="quantiles of the scores stay where the preset's trailing days had them",
                fact=f"candidate_{task}_quantiles",
                trailing=Trailing.SCORES,
                high=limits.score_shift,
                limit="score_shift",
                errors=limits.standard_errors,
                users="effective_users",
            )
        )
    return rules


def _metric_rules(limits: Limits) -> list[Rule]:
    rules = [
        Rule(
            name=f"{ranker}_metrics_defined",
            column=f"{ranker} metrics",
            description=f"{', '.join(DEFINED)} are numbers: metrics that are not",
            fact=f"{ranker}_undefined",
            high=0,
            requires="champion" if ranker == "champion" else "",
        )
        for ranker in RANKERS
    ]
    for task in LABELS:
        rules += [
            Rule(
                name=f"{ranker}_{task}_auc_recount",
                column=f"{ranker} {task}_auc",
                description="the AUC is the one that the score file gives: difference",
                fact=f"{ranker}_{task}_auc_difference",
                high=_RECOUNT,
                explained_by=(f"{ranker}_{task}_live_values", f"{ranker}_{task}_live_spread"),
                requires="champion" if ranker == "champion" else "",
            )
            for ranker in RANKERS
        ]
        rules.append(
            Rule(
                name=f"{task}_users_counted",
                column=f"candidate {task}_gauc_users",
                description=f"users that {task}_gauc counts: below, it says nothing",
                fact=f"candidate_{task}_gauc_users",
                low=limits.min_users,
                limit="min_users",
            )
        )
        for metric in (f"{task}_auc", f"{task}_gauc"):
            rules.append(
                Rule(
                    name=f"{metric}_believable",
                    column=f"candidate {metric}",
                    description=f"{metric} is not too good to be true: beyond, it is a leak",
                    fact=f"candidate_{metric}",
                    high=limits.ceilings[metric],
                    limit="ceilings",
                )
            )
            rules.append(
                Rule(
                    name=f"{metric}_gain_believable",
                    column=f"candidate {metric}",
                    description=f"gain of {metric} over the champion: a jump is a leak until shown otherwise",
                    fact=f"{metric}_gain",
                    high=limits.max_auc_gain,
                    limit="max_auc_gain",
                    requires="settled champion",
                )
            )
        rules.append(
            Rule(
                name=f"{task}_auc_below_oracle",
                column=f"candidate {task}_auc",
                description="no model beats the oracle that drew the labels but by chance: difference",
                fact=f"{task}_auc_over_oracle",
                high=limits.max_over_oracle,
                limit="max_over_oracle",
                requires="oracle",
            )
        )
    return rules
