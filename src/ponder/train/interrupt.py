"""Ctrl-C and SIGTERM while a model is trained: nothing is lost but, at most, the step under way.

Once: the step is finished and saved. Twice: the step is given up and what came before it is saved, unless the
step has begun to change the weights, which then takes it to its end.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ponder.train.optimizer import Optimizer
from ponder.train.run import Values
from ponder.train.trainer import Stopped, Trainer

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptibleOptimizer(Optimizer):
    """Knows whether the step under way has changed the weights."""

    changed = False

    def step(self, rate: float) -> float:
        self.changed = True
        return super().step(rate)


class Interrupts:
    """The signals that a run was sent. alone: no other process takes part in the run."""

    def __init__(self, alone: bool = True) -> None:
        self.alone = alone
        self._times = 0
        self._trainer: Trainer | None = None
        self._state: dict[str, Any] | None = None

    def stopping(self) -> bool:
        """Whether the run is to stop after this step."""
        return self._times > 0

    def after(self, shown: Callable[[int, int, Values], None]) -> Callable[[int, int, Values], None]:
        """`shown`, which is called after each step: what was trained so far is whole then."""

        def whole(step: int, steps: int, values: Values) -> None:
            if self._trainer is not None:
                self._state = copy.deepcopy(self._trainer.state)
                self._set_changed(False)
            shown(step, steps, values)

        return whole

    @contextlib.contextmanager
    def heeded(self, trainer: Trainer) -> Iterator[None]:
        """While it lasts, the signals stop `trainer`. Raises Stopped where it was stopped in the midst of a step."""
        self._trainer = trainer
        before = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._pressed) for number in SIGNALS}
        try:
            yield
        except KeyboardInterrupt:
            for number in before:
                signal.signal(number, signal.SIG_IGN)  # what is saved now is all that is left to do
            self._give_up(trainer)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _pressed(self, number: int, frame: FrameType | None) -> None:
        self._times += 1
        # Several processes each get every signal, and more of them from who started them: they stop together.
        if self._times > 1 and self.alone and not self._changed():
            raise KeyboardInterrupt

    def _give_up(self, trainer: Trainer) -> None:
        if self._state is not None and self.alone:
            trainer.state = self._state  # the step that was given up may have changed it
            trainer.save()
        raise Stopped(
            f"stopped in step {trainer.step + 1} of {trainer.schedule.steps}", "The same command begins it again"
        ) from None

    def _changed(self) -> bool:
        optimizer = self._trainer.optimizer if self._trainer is not None else None
        return isinstance(optimizer, InterruptibleOptimizer) and optimizer.changed

    def _set_changed(self, value: bool) -> None:
        if self._trainer is not None and isinstance(self._trainer.optimizer, InterruptibleOptimizer):
            self._trainer.optimizer.changed = value
