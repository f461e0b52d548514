"""A time budget on a clock that the test moves: steps, looks and saves take what it says."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from setting import Setting
from torch import Tensor

from simmim.errors import Stopped
from simmim.runs.checkpoints import Checkpoints
from simmim.runs.stop import StopSignal
from simmim.tensors.batch import Batch
from simmim.training.plan import Plan


@dataclass
class Costs:
    """Seconds that things take, and the clock that they move."""

    start: float = 20.0
    """The first step, which starts the loader."""
    step: float = 2.0
    look: float = 3.0
    first_look: float = 3.0
    save: float = 2.0
    later: float = 1.0
    """By how much a step takes longer after a third of ten minutes."""
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now

    def run(self, setting: Setting, plan: Plan, folder: Path, **changes) -> list[Plan]:
        """Train; returns the plans that were made on the way."""
        task = setting.task()
        honest, plans = task.loss, []
        first = first_look = True

        def timed(batch: Batch) -> dict[str, Tensor]:
            nonlocal first
            if torch.is_grad_enabled():
                late = self.later if self.now > 1200 else 1.0
                self.now += self.start if first else self.step * late
                first = False
            return honest(batch)

        def look(_step: int) -> dict[str, float]:
            nonlocal first_look
            self.now += self.first_look if first_look else self.look
            first_look = False
            return {}

        def save(_step: int) -> None:
            self.now += self.save

        task.loss = timed  # type: ignore[method-assign]
        setting.run(
            task,
            plan.steps,
            plan=plan,
            looks=[look],
            on_save=save,
            on_plan=plans.append,
            checkpoints=Checkpoints(folder, keep=2),
            clock=self,
            **changes,
        )
        return plans


def plan_of(setting: Setting, steps: int, budget: float) -> Plan:
    return Plan(
        steps=steps,
        batch_size=setting.batch_size,
        epoch=len(setting.images) / setting.batch_size,
        optim=setting.config.optim,
        precision="fp32",
        seed=0,
        budget=budget,
    )


@pytest.mark.parametrize(
    ("costs", "guess"),
    [
        (Costs(), 900),
        (Costs(), 30),  # the rehearsal was far too slow
        pytest.param(*(Costs(), 3), marks=pytest.mark.slow),
        pytest.param(
            *(Costs(step=4.0), 900), marks=pytest.mark.slow
        ),  # the steps are slower than in the rehearsal
        (Costs(step=40.0, start=60.0), 12),  # there is hardly time for any
        (Costs(look=25.0, first_look=25.0, save=10.0), 900),  # most of the time is not for steps
        pytest.param(
            *(Costs(look=1.0, first_look=70.0), 900), marks=pytest.mark.slow
        ),  # what is imported by it is not said of the rest
        pytest.param(
            *(Costs(start=0.0, look=0.0, first_look=0.0, save=0.0), 900), marks=pytest.mark.slow
        ),
        pytest.param(*(Costs(start=100.0), 900), marks=pytest.mark.slow),
        (Costs(later=0.4), 900),  # somebody else's work ends after a third
        pytest.param(*(Costs(later=2.5), 900), marks=pytest.mark.slow),  # or begins there
    ],
)
def test_a_budget_is_kept_within_a_tenth(setting: Setting, tmp_path: Path, costs: Costs, guess):
    budget = 600.0
    plans = costs.run(setting, plan_of(setting, guess, budget), tmp_path)
    assert costs.now - 1000.0 == pytest.approx(budget, rel=0.1)
    before = plans[0].earlier[0]
    assert 1 <= len(plans) <= 5
    assert before.steps == guess
    assert before.until < 0.1 * plans[-1].steps or guess in (3, 12)
    assert f"counted anew at step {before.until}: {costs.step:.2g} s a step" in before.why


def test_without_looks_none_are_counted(setting: Setting, tmp_path: Path):
    costs = Costs(save=0.0)
    plan = replace(plan_of(setting, 900, 600.0), look_every=0)
    (new,) = costs.run(setting, plan, tmp_path)
    assert costs.now - 1000.0 == pytest.approx(600, rel=0.02)
    assert new.steps == pytest.approx(290, abs=5)


def test_the_rate_follows_the_new_length_from_there_on(setting: Setting, tmp_path: Path):
    plan = plan_of(setting, 900, 600.0)
    (new,) = Costs().run(setting, plan, tmp_path)
    until = new.earlier[0].until
    old_rates, fresh = plan.schedules()[0][1], replace(new, earlier=()).schedules()[0][1]
    parts = new.schedules()
    assert [end for end, _ in parts] == [until, float("inf")]
    assert parts[0][1].rate(until - 1) == old_rates.rate(until - 1)
    assert parts[1][1].rate(until) == fresh.rate(until) != old_rates.rate(until)
    assert parts[1][1].rate(new.steps - 1) < 0.01 * fresh.peak


def test_a_run_that_is_stopped_before_counts_what_was_trained(setting: Setting, tmp_path: Path):
    costs, stop = Costs(start=1.0, look=0.0, first_look=0.0, save=0.0), StopSignal()
    plan = plan_of(setting, 900, 600.0)

    class Ends:
        def update(self, row: dict) -> None:
            if row["step"] == 12:
                stop.number = 15

        def note(self, text: str) -> None:
            pass

    with pytest.raises(Stopped):
        costs.run(setting, plan, tmp_path, watchers=[Ends()], stop=stop)
    newest = Checkpoints(tmp_path, keep=2).newest(print)
    assert newest is not None
    (new,) = costs.run(setting, plan, tmp_path, resume=newest)
    assert new.steps == pytest.approx(300, abs=6)


def test_resumed_with_the_plan_that_was_written_the_bits_are_the_same(
    setting: Setting, tmp_path: Path
):
    whole = setting.task()
    plan = plan_of(setting, 60, 0.0).again(10, 25, "a test")
    setting.run(whole, 25, plan=plan)
    checkpoints = Checkpoints(tmp_path, keep=100)
    setting.run(setting.task(), 25, plan=replace(plan, save_minutes=0), checkpoints=checkpoints)
    for step in (4, 10, 20):  # before, at and after the step from which the new length holds
        for folder in tmp_path.glob("step-*"):
            if int(folder.name[5:]) > step:
                folder.rename(tmp_path / f"later-{step}-{folder.name}")
        resumed = setting.task()
        newest = checkpoints.newest(print)
        assert newest is not None
        assert newest.step == step
        setting.run(resumed, 25, plan=plan, resume=newest)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), (step, name)
        for folder in tmp_path.glob(f"later-{step}-*"):
            folder.rename(tmp_path / folder.name.removeprefix(f"later-{step}-"))
