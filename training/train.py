"""Training ONE model: configuration, batches, schedule, timing and memory -> its metrics.

Knows nothing of arms in comparison, orders or files; experiment/ does that.
"""

import math
import time
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch

from analysis.metrics import NUMBERS, SERIES
from machine import ranks
from machine.device import synchronize
from machine.files import utc_now
from machine.state import device_state
from training.batches import curve_rows, learning_rate, planned_steps, validation_rows
from training.memory import child_peak_memory_mb
from training.reach import reach
from training.trainer import Trainer, autocast, deterministic_algorithms, release_memory

LOSSES_AT_ONCE = 50  # losses stay on a GPU until so many are fetched together


def train(config, arm, dataset, seed, device, progress=lambda steps_done, loss: None):
    """Train one arm from ``seed`` and measure it; returns ``(metrics, model)``.

    dataset: has ``train`` and ``held_out`` rows (N, S + 1) and ``vocab_size``.  The metrics are
    the keys of analysis.metrics, NUMBERS, TEXTS, RECORDS and SERIES, without the place in the
    experiment.  No time in them includes asking for the device's state (``machine.state``).

    A loss that is not finite or memory that runs out ends the training with ``status`` diverged or
    out_of_memory (model None then) and a ``message``.

    Where several ranks train together, each calls it with the same arguments; the first one's
    metrics count.  Where memory runs out on one rank all end, for the others wait for it.
    """
    metrics = {"device_before": device_state(device)} | _empty_metrics(seed)
    entered = time.perf_counter()
    model = None
    try:
        with deterministic_algorithms(config.deterministic):
            model = _measure(config, arm, dataset, seed, device, progress, metrics)
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is one of the first
        if not ranks.ran_out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        metrics["status"] = "out_of_memory"
        metrics["message"] = f"out of memory on {device}: {ranks.MEMORY_REMEDY} ({reason})"
    metrics["wall_time"] = time.perf_counter() - entered
    metrics |= {"ended_at": utc_now(), "device_after": device_state(device)}
    return metrics, model


def _empty_metrics(seed):
    """A training's metrics before anything was trained: times 0, results missing."""
    place = ("block", "position", "index")  # in an experiment
    metrics = {name: math.nan for name in NUMBERS if name not in place}
    metrics |= dict.fromkeys(("total_steps", "total_tokens"), 0)
    metrics |= dict.fromkeys(("compile_time", "warmup_time", "eval_time", "wall_time"), 0.0)
    metrics |= {name: np.zeros(0, dtype) for name, dtype in SERIES.items()}
    metrics |= {"seed": seed, "status": "ok", "message": "", "curve": None, "reach": None}
    return metrics | {"started_at": utc_now()}


def _measure(config, arm, dataset, seed, device, progress, metrics):
    """Warm up, train and evaluate; ``metrics`` gets each figure as soon as it is known.

    Returns the model, None where the training diverged.
    """
    cuda = device.type == "cuda"
    if not cuda and ranks.is_first() and config.shard_sequence == 1:
        metrics["peak_memory_mb"] = child_peak_memory_mb(config, arm, dataset.vocab_size, seed)
    trainer = Trainer(config, arm, dataset.train, dataset.vocab_size, device, seed)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    metrics["compile_time"], metrics["warmup_time"] = trainer.warm_up()
    if cuda and not config.records_graphs:  # graphs take their memory while they are recorded
        torch.cuda.reset_peak_memory_stats(device)
    steps = planned_steps(config, len(dataset.train))
    curve = Curve(trainer, dataset.held_out)
    losses, meter = timed_steps(trainer, steps, progress, curve)
    metrics |= _training_metrics(config, losses, meter)
    metrics |= {"curve": curve.record(), "eval_time": curve.seconds}
    if cuda:
        allocated, reserved = ranks.largest(*meter.peaks)
        metrics["peak_memory_mb"] = allocated / 2**20
        metrics["peak_reserved_mb"] = reserved / 2**20
    if not np.isfinite(losses[-1]):
        metrics["status"] = "diverged"
        metrics["message"] = f"the loss became {losses[-1]} at step {len(losses)}"
        return None
    if config.records_graphs:
        # evaluation is eager: at long lengths the graphs' memory, gradients too, leaves no room
        trainer.optimizer.zero_grad(set_to_none=True)
        release_memory(device)
    if config.eval_every:
        curve.evaluate(steps)  # so that it ends where the training does
    started = time.perf_counter()
    rows = validation_rows(config, len(dataset.held_out))
    val_loss = trainer.evaluate(dataset.held_out[rows])
    if not math.isfinite(val_loss):  # which the last step's own loss cannot show
        metrics["status"] = "diverged"
        metrics["message"] = f"the validation loss is {val_loss}: the last step broke the weights"
        return None
    with autocast(config, device):
        metrics["reach"] = reach(
            trainer.model,
            dataset.held_out,
            config.seq_len,
            config.reach_passages,
            at_once=config.sequences_at_once,
            chunk=config.loss_chunk,
        )
    seconds = curve.seconds + time.perf_counter() - started
    metrics |= {"val_loss": val_loss, "curve": curve.record(), "eval_time": seconds}
    return trainer.model


class Curve:
    """The held-out loss in the course of a training, of the same few rows in every training.

    The model is evaluated eagerly between two steps, which has no influence on any step: the
    compiled model and its CUDA graphs, which hold the last gradients, stay as they are, no random
    number is drawn, and the ``Meter`` is paused.
    """

    def __init__(self, trainer, held_out):
        self.trainer, self.every = trainer, trainer.config.eval_every
        self.rows = held_out[curve_rows(trainer.config, len(held_out))]  # (N, S + 1)
        self.steps, self.losses, self.seconds = [], [], 0.0

    def is_due(self, step):
        """Whether an evaluation follows this step, counted from 1."""
        return self.every > 0 and step % self.every == 0

    def evaluate(self, step):
        """Evaluate the model as it is after so many steps.

        A loss that is not finite is not kept: the step broke the weights, and the training ends.
        """
        started = time.perf_counter()
        loss = self.trainer.evaluate(self.rows)
        if math.isfinite(loss):
            self.losses.append(loss)
            self.steps.append(step)
        self.seconds += time.perf_counter() - started

    def record(self):
        """{"steps": [...], "losses": [...]}, in nats a token; None without any."""
        return {"steps": self.steps, "losses": self.losses} if self.steps else None


class Meter:
    """The time and memory of a training's steps, without what is done while it is paused.

    seconds: of all steps, the slowest rank's; step_seconds: of each, a list; peaks: the most bytes
    that were allocated and reserved on CUDA.
    """

    def __init__(self, trainer):
        self.device, self.graphs = trainer.device, trainer.config.records_graphs
        self.seconds, self.step_seconds, self.peaks = 0.0, [], (0, 0)

    def start(self):
        synchronize(self.device)
        ranks.gather(None)  # when all are here
        self.started = time.perf_counter()
        self.marks = [_mark(self.device)]

    def step_ends(self):
        self.marks.append(_mark(self.device))

    def stop(self):
        synchronize(self.device)
        self.seconds += ranks.largest(time.perf_counter() - self.started)[0]
        self.step_seconds += _seconds_between(self.marks)
        if self.device.type == "cuda":
            allocated = torch.cuda.max_memory_allocated(self.device)
            reserved = torch.cuda.max_memory_reserved(self.device)
            self.peaks = max(self.peaks[0], allocated), max(self.peaks[1], reserved)

    @contextmanager
    def paused(self):
        """What is done inside counts neither as time nor as memory."""
        self.stop()
        yield
        if self.graphs:  # recorded steps cannot reuse what the allocator keeps of an evaluation
            torch.cuda.empty_cache()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start()


def timed_steps(trainer, steps, progress, curve):
    """Train ``steps`` steps: the timed region, whose clock stops for the ``Curve``'s evaluations.

    Returns the losses, an array, and the ``Meter``.  Where the training diverged the losses end
    with the first that is not finite.  ``progress(steps_done, loss)`` is called after every step,
    with loss None where it has not been fetched from the device.  Losses are those of all ranks'
    rows.
    """
    config, device = trainer.config, trainer.device
    at_once = LOSSES_AT_ONCE if device.type == "cuda" else 1
    on_device = torch.empty(steps, device=device)
    losses, meter = [], Meter(trainer)
    meter.start()
    for step, batch in enumerate(trainer.batches(steps), start=1):
        lr = learning_rate(step - 1, steps, config.lr, config.warmup_steps, config.schedule)
        on_device[step - 1] = trainer.step(batch, lr)
        meter.step_ends()
        is_last, fetched = step == steps, None
        if step % at_once == 0 or is_last or curve.is_due(step):
            losses += ranks.mean(on_device[len(losses) : step].tolist())
            fetched = losses[-1]
        progress(step, fetched)
        if fetched is not None and not np.isfinite(losses[-at_once:]).all():
            break
        if curve.is_due(step) and not is_last:
            with meter.paused():
                curve.evaluate(step)
    meter.stop()
    losses = np.array(losses, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(losses))
    done = broken[0] + 1 if broken.size else len(losses)
    return losses[:done], meter


def _mark(device):
    """This moment: the host's clock, or a CUDA event, read at the end so that no step waits."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(marks):
    """Seconds between one mark and the next, a list; call after synchronizing."""
    if isinstance(marks[0], float):
        return np.diff(marks).tolist()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def _training_metrics(config, losses, meter):
    """The figures that follow from a training's losses and times."""
    steps = len(losses)
    tokens = steps * config.batch_size * config.seq_len
    metrics = {
        "total_steps": steps,
        "total_tokens": tokens,
        "training_time": meter.seconds,
        "losses": losses,
        "tokens_seen": np.arange(1, steps + 1, dtype=np.int64) * (tokens // steps),
        "step_seconds": np.array(meter.step_seconds[:steps], dtype=np.float32),
    }
    if np.isfinite(losses).all():
        metrics["tokens_per_second"] = tokens / meter.seconds
        metrics["final_loss"] = float(losses[-1])
        metrics["avg_loss_last_100"] = float(losses[-100:].mean(dtype=np.float64))
    return metrics
