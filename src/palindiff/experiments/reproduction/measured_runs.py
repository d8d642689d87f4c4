"""What is measured of the runs of a scale: no model is opened or measured twice, or by two processes at once.

Here: opening and remembering. Not here: what is measured of one model (`measurement.py`),
tables and claims (`reproduce.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path

from palindiff.evaluation.generation import ImageReadings
from palindiff.experiments.reproduction.kernel_distance import KernelDistance
from palindiff.experiments.reproduction.measurement import Measurement, OpenModel
from palindiff.experiments.reproduction.model_runs import ModelRun
from palindiff.experiments.reproduction.plan import Plan
from palindiff.experiments.reproduction.plan_sections import InterpolationPlan, NamingPlan, RowPlan


@dataclass
class MeasuredRuns:
    """Measurements of finished runs, by run, share of its weights, and setting.

    Each method waits while another process has the run, or raises IsBusyError if `waits` is False.
    """

    plan: Plan
    data: Path  # folder of the data sets
    device: str = "cpu"
    num_workers: int = 0  # processes that decode images
    waits: bool = True
    _open: tuple[tuple[str, float], OpenModel] | None = field(default=None, init=False)  # the last, by run and share
    _known: dict[str, ImageReadings] = field(default_factory=dict, init=False)  # of real images, for all runs
    _measured: dict[tuple[object, ...], Measurement] = field(default_factory=dict, init=False)

    def naming(
        self, run: ModelRun, setting: NamingPlan, name: str, settings: list[NamingPlan], share: float = 1.0
    ) -> Measurement:
        """Measure a run under a setting, and under others that are needed too, so that its images are read once."""
        if (run.name, share, setting, name) not in self._measured:
            wanted = list(dict.fromkeys([setting, *settings]))
            with run.locked(waits=self.waits):
                found = self.model(run, share).naming(name, self.plan.naming[name], wanted)
            self._measured |= {(run.name, share, each, name): row for each, row in zip(wanted, found, strict=True)}
        return self._measured[run.name, share, setting, name]

    def generation(self, run: ModelRun, name: str, share: float = 1.0) -> Measurement:
        """Generate, and measure what was generated."""
        if (run.name, share, name) not in self._measured:
            with run.locked(waits=self.waits):
                found = self.model(run, share).generation(self.plan.generation[name])
            self._measured[run.name, share, name] = found
        return self._measured[run.name, share, name]

    def classifier(self, run: ModelRun, plan: RowPlan, name: str) -> Measurement:
        """Measure the Diffusion Classifier of a row."""
        assert plan.diffusion_classifier is not None, "only such rows"
        key = (run.name, plan.diffusion_classifier, name)
        if key not in self._measured:
            with run.locked(waits=self.waits):
                self._measured[key] = self.model(run).diffusion_classifier(
                    name, self.plan.naming[name], plan.diffusion_classifier
                )
        return self._measured[key]

    def model(self, run: ModelRun, share: float = 1.0) -> OpenModel:
        """Open a run's model, and keep it until another one is opened.

        Raises: ValueError if the run is not of the plan as it is now.
        """
        if self._open is None or self._open[0] != (run.name, share):
            run.check_finished()
            model, generator = run.open(self.device, share)
            opened = OpenModel(model, run.folder, self.data, self.num_workers, generator, self._known)
            self._open = (run.name, share), opened
        return self._open[1]

    def chosen_share(self, run: ModelRun, plan: InterpolationPlan) -> float:
        """The share of a run's weights that is best on validation; of equal ones, the largest."""

        def quality(share: float) -> float:
            if plan.generation is not None:
                return -KernelDistance.of(self.generation(run, plan.generation, share).items).of_all()
            assert plan.data is not None, "the plan has checked it"
            found = self.naming(run, NamingPlan(), plan.data, [], share)
            return sum(float(found.items[metric].mean()) for metric in self.plan.naming[plan.data].all_recall_metrics)

        return max(sorted(plan.shares, reverse=True), key=quality)
