"""What a person sees while an experiment goes on: a bar, and a line for every training."""

import math

from tqdm import tqdm

from machine.command import say


def format_seconds(seconds):
    """A rough duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Progress(tqdm):
    """A bar of all steps on stderr, where that is a terminal, and a line for every training."""

    def __init__(self, trainings, done, steps):
        """trainings: how many are planned; done: how many an earlier process finished."""
        super().__init__(
            total=trainings * steps,
            initial=done * steps,
            unit="step",
            disable=None,
            mininterval=0.5,  # drawing takes host time that belongs to the training
            smoothing=0,  # arms differ: their mean pace tells the time that is left
        )
        self.steps = steps

    def advance(self, steps_done, loss):
        """A step was taken: the ``progress`` of ``training.train.train``."""
        self.update(1)
        if loss is not None:
            self.set_postfix_str(f"loss {loss:.4f}", refresh=False)

    def finish(self, name, training):
        """A training ended: one line that says how."""
        self.update(self.steps - training["total_steps"])  # of one that failed
        if training["status"] == "ok":
            memory = training["peak_memory_mb"]
            outcome = f"{training['training_time']:.1f} s, "
            outcome += "" if math.isnan(memory) else f"{memory:.0f} MB, "
            outcome += f"loss {training['final_loss']:.4f}, validation {training['val_loss']:.4f}"
        else:
            outcome = f"{training['status'].replace('_', ' ')}: {training['message']}"
        say(f"{name}: {outcome}")
