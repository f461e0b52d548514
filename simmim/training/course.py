"""What a loop follows: its plan, counted anew where the run has a budget of time."""

from collections.abc import Callable

from simmim.training.budget import Budget
from simmim.training.plan import Plan
from simmim.training.world import World


class Course:
    """The plan that is followed.

    Args:
        plan: At first.
        start: Steps that were made before.
        world: Its first process decides.
        on_plan: Called with each further plan.
        clock: Gives seconds.
    """

    def __init__(
        self,
        plan: Plan,
        start: int,
        world: World,
        on_plan: Callable[[Plan], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self.plan, self._world, self._on_plan = plan, world, on_plan
        self._schedules = plan.schedules()
        began = plan.earlier[-1].until if plan.earlier else 0
        self._budget = None  # where the steps stand
        if plan.budget:
            self._budget = Budget(plan.budget, plan.spent, start - began, clock)

    def rate(self, done: int) -> float:
        """The learning rate of the step after ``done``."""
        return next(each.rate(done) for until, each in self._schedules if done < until)

    def count(self, done: int) -> bool:
        """Count a step, and the steps for the budget anew where it is time.

        Returns:
            Whether a look and a save are to be made before, so that it is known what they take.
        """
        budget = self._budget
        if budget is None:
            return False
        due = self._world.any(budget.step() and self._world.leads)
        measured = bool(budget.saves and (budget.looks or not self.plan.look_every))
        if done == self.plan.steps or (due and measured):
            self._count_anew(done, budget)
        return due and not measured

    def look_took(self, seconds: float) -> None:
        """Keep what a look took."""
        if self._budget is not None:
            self._budget.looks.append(seconds)

    def save_took(self, seconds: float) -> None:
        """Keep what a save took."""
        if self._budget is not None:
            self._budget.saves.append(seconds)

    def _count_anew(self, done: int, budget: Budget) -> None:
        """Plan as many steps as fit into what is left of the budget, by what was measured."""
        plan = self.plan
        looks, saves = plan.looks(), plan.saves(plan.budget)
        why = (
            f"counted anew at step {done:,}: {budget.per_step:.2g} s a step, "
            f"{budget.per_look:.2g} s a look, {budget.per_save:.2g} s a save"
        )
        steps = done + budget.steps_left(plan.steps - done, looks=looks, saves=saves)
        spent = 0.0 if budget.settled else budget.spent
        steps, spent, why = self._world.share((steps, spent, why))
        if not spent:
            self._budget = None
        if steps != plan.steps:
            self.plan = plan.again(done, steps, why, spent=spent)
            self._schedules = self.plan.schedules()
            if self._on_plan is not None:
                self._on_plan(self.plan)
