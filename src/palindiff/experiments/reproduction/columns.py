"""The columns of a table: means of metrics over data sets and seeds, with intervals.

Here: from measurements to the rows that the page shows. Not here: measuring (`measurement.py`), the page
(`report.py`).
"""

from collections.abc import Mapping, Sequence

import torch

from palindiff.evaluation.intervals import bootstrap_interval
from palindiff.evaluation.results import Row
from palindiff.experiments.reproduction.kernel_distance import KernelDistance
from palindiff.experiments.reproduction.measurement import Measurement, joined
from palindiff.experiments.reproduction.plan_sections import ColumnPlan
from palindiff.experiments.reproduction.verdicts import mean_kd

KD = "kd_efflite0"
DISTANCE_RESAMPLES = 2_000  # columns are computed after each training; claims have more


def column_row(
    column: ColumnPlan, measured: Mapping[str, Sequence[Measurement]], generation: str | None
) -> Row | None:
    """Mean of a column's metrics over its data sets, of each seed and over all seeds.

    Where every metric is a mean of items, the interval is over seeds and items, and items are drawn within their
    metric and data set. A kernel distance is that of all images, as claims compare it, over seeds and images.

    measured: by data set, a measurement of each seed. generation: the name of that of the table.
    Returns: None if one of its metrics was not measured.
    """
    data = column.data or ((generation,) if generation else ())
    places = [(each, metric) for each in data for metric in column.metrics]
    if not places or any(each not in measured for each, _ in places):
        return None
    num_seeds = len(measured[places[0][0]])
    values: list[float] = []
    for seed in range(num_seeds):
        of_seed = [_value(measured[each][seed], metric) for each, metric in places]
        if None in of_seed:
            return None
        values.append(sum(filter(None, of_seed)) / len(of_seed))
    low, high = _interval(places, measured)
    return {
        "column": column.title, "value": sum(values) / num_seeds, "ci_low": low, "ci_high": high,
        "lowest": min(values), "highest": max(values), "num_seeds": num_seeds,
        "chance": _chance([measured[name][0] for name, _ in places], [metric for _, metric in places]),
    }  # fmt: skip


def _interval(
    places: Sequence[tuple[str, str]], measured: Mapping[str, Sequence[Measurement]]
) -> tuple[float | None, float | None]:
    """Interval of the mean over places, each a data set and a metric."""
    num_seeds = len(measured[places[0][0]])
    if len(places) == 1 and all(_is_distance(each, places[0][1]) for each in measured[places[0][0]]):
        return mean_kd(measured[places[0][0]], DISTANCE_RESAMPLES).interval()
    if any(metric not in each.items for name, metric in places for each in measured[name]):
        return _measured_interval(places, measured)
    metrics: dict[str, list[str]] = {}
    for name, metric in places:
        metrics.setdefault(name, []).append(metric)
    seeds = [joined({name: measured[name][seed] for name in metrics}, metrics) for seed in range(num_seeds)]
    units = list(seeds[0].units.values())
    items = torch.stack([torch.cat(list(each.items.values())) for each in seeds])  # (s, n)
    groups = torch.cat([torch.full_like(each, place) for place, each in enumerate(units)])
    return bootstrap_interval(items, groups=groups, units=torch.cat(units))


def _measured_interval(
    places: Sequence[tuple[str, str]], measured: Mapping[str, Sequence[Measurement]]
) -> tuple[float | None, float | None]:
    """The interval that was measured with a single metric of a single seed; of several there is none."""
    name, metric = places[0]
    if len(places) > 1 or len(measured[name]) > 1:
        return None, None
    row = next(each for each in measured[name][0].rows if each["metric"] == metric)
    low, high = (None if row.get(end) is None else float(str(row[end])) for end in ("ci_low", "ci_high"))
    return low, high


def _value(measured: Measurement, metric: str) -> float | None:
    """The value of a metric; of a kernel distance, that of all images."""
    if _is_distance(measured, metric):
        return KernelDistance.of(measured.items).of_all()
    return measured.value(metric)


def _is_distance(measured: Measurement, metric: str) -> bool:
    return metric == KD and "generated" in measured.items


def _chance(measured: Sequence[Measurement], metrics: Sequence[str]) -> float | None:
    found = [
        row.get("chance") for each, metric in zip(measured, metrics, strict=True) for row in each.rows
        if row["metric"] == metric
    ]  # fmt: skip
    known = [float(str(each)) for each in found if each is not None]
    return sum(known) / len(known) if len(known) == len(found) else None
