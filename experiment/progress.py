"""What a person sees while an experiment goes on: a bar, and a line for every training."""

from statistics import mean

from tqdm import tqdm

from machine.command import say


def format_seconds(seconds):
    """A rough duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class Progress:
    """A bar of all steps on stderr, where that is a terminal, and a line for every training."""

    def __init__(self, trainings, done, steps):
        """trainings: how many are planned; done: those that an earlier process finished."""
        self.trainings, self.steps = trainings, steps
        self.seconds = [training["wall_time"] for training in done]
        self.bar = tqdm(
            total=trainings * steps,
            initial=len(self.seconds) * steps,
            unit="step",
            disable=None,
            mininterval=0.5,  # drawing takes host time that belongs to the training
            smoothing=0,  # arms differ: their mean pace tells the time that is left
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def start(self, name):
        """A training begins; returns the callback for ``training.train.train``."""
        self.bar.set_description(name)

        def advance(steps_done, loss):
            self.bar.update(1)
            if loss is not None:
                self.bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)

        return advance

    def finish(self, name, training):
        """A training ended: one line that says how, and the time that is left."""
        self.bar.update(self.steps - training["total_steps"])  # of one that failed
        self.seconds.append(training["wall_time"])
        left = mean(self.seconds) * (self.trainings - len(self.seconds))
        if training["status"] == "ok":
            outcome = (
                f"{training['training_time']:.1f} s, {training['peak_memory_mb']:.0f} MB, "
                f"loss {training['final_loss']:.4f}, validation {training['val_loss']:.4f}"
            )
        else:
            outcome = f"{training['status'].replace('_', ' ')}: {training['message']}"
        if left:
            outcome += f"; about {format_seconds(left)} left"
        say(f"{name}: {outcome}")
