"""What a person sees while an experiment goes on: bars, or a line a training."""

import numpy as np
from tqdm import tqdm

from analysis.values import in_order
from machine import ranks
from machine.command import INTERRUPTED, TERMINATED, say
from machine.signals import Terminated


def format_seconds(seconds):
    """A rough duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """Two bars on stderr, experiment and current training; plain lines where it is no terminal."""

    def __init__(self, config, steps, estimates, done=None):
        """done: metrics of the trainings that an earlier launch finished."""
        done = done or {arm: [] for arm in config.arms}
        self.steps, self.runs = steps, config.runs
        self.seconds = {arm: [s] if (s := estimates.get(arm)) else [] for arm in config.arms}
        self.measured = {arm: [run["wall_time"] for run in done[arm]] for arm in config.arms}
        self.waiting = {arm: config.runs - len(done[arm]) for arm in config.arms}
        self.whole = tqdm(
            total=config.runs * len(config.arms) * steps,
            initial=len(in_order(done)) * steps,
            desc="experiment",
            unit="step",
            disable=None,
            mininterval=0.5,  # drawing takes host time that belongs to the training
            position=0,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps "
            "[{elapsed}{postfix}]",
        )
        self.current = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.current is not None:
            self.current.close()
        self.whole.close()

    def seconds_left(self, under_way=()):
        """Seconds that the waiting trainings will take, from measured times where there are any.

        under_way: {arm: share of a training still to come}.
        """
        means = {
            arm: float(np.mean(self.measured[arm] or self.seconds[arm]))
            for arm in self.waiting
            if self.measured[arm] or self.seconds[arm]
        }
        if not means:
            return None
        typical = float(np.mean(list(means.values())))
        return sum(
            (n + dict(under_way).get(arm, 0)) * means.get(arm, typical)
            for arm, n in self.waiting.items()
        )

    def start(self, run, arm):
        """A training begins; returns the callback for ``training.train.train``."""
        self.waiting[arm] -= 1
        self.current = tqdm(
            total=self.steps,
            desc=f"run {run + 1}/{self.runs} {arm}",
            unit="step",
            disable=None,
            mininterval=0.5,
            position=1,
            leave=False,
        )
        self.whole.set_postfix_str(f"about {self._left(arm, 1.0)} left", refresh=False)

        self.advanced = 0

        def advance(steps_done, loss):
            self.advanced = steps_done
            self.whole.update(1)
            self.current.update(1)
            if loss is not None:
                left = self._left(arm, 1 - steps_done / self.steps)
                self.current.set_postfix_str(f"loss {loss:.4f}", refresh=False)
                self.whole.set_postfix_str(f"about {left} left, loss {loss:.4f}", refresh=False)

        return advance

    def _left(self, arm=None, share=0.0):
        """The time left in words, with ``share`` of a training of ``arm`` that is under way."""
        left = self.seconds_left({arm: share} if arm else {})
        return "?" if left is None else format_seconds(left)

    def finish(self, run, arm, metrics):
        """A training ended: one line that says how."""
        steps_shown = self.advanced
        self.current.close()
        self.current = None
        self.whole.update(self.steps - steps_shown)
        self.measured[arm].append(metrics["wall_time"])
        if metrics["status"] == "ok":
            result = (
                f"{metrics['training_time']:.1f} s, {metrics['peak_memory_mb']:.0f} MB, "
                f"loss {metrics['final_loss']:.4f}, validation {metrics['val_loss']:.4f}"
            )
        else:
            result = f"{metrics['status'].replace('_', ' ')}: {metrics['message']}"
        say(f"run {run + 1}/{self.runs} {arm}: {result}; about {self._left()} left")


# --- from the command line to the exit code ----------------------------------------------------
def _say_stopped(stop, what):
    """Say that a signal ended it, unless another rank has said why all end."""
    if ranks.first_to_speak():
        word = "terminated" if isinstance(stop, Terminated) else "interrupted"
        # torchrun does so where a rank has ended, and names it
        say(word + " by torchrun" * (ranks.size() > 1) + what)


def _exit_code(stop):
    return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
