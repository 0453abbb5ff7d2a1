"""Training ONE model: configuration, batches, schedule, timing and memory -> its metrics.

Knows nothing of arms in comparison, orders or files; experiment/ does that.
"""

import math
import time
from itertools import pairwise

import numpy as np
import torch

from analysis.metrics import NUMBERS, SERIES
from machine import ranks
from machine.device import synchronize
from machine.files import utc_now
from machine.state import device_state
from training.batches import learning_rate, planned_steps
from training.memory import child_peak_memory_mb
from training.reach import reach
from training.trainer import Trainer, autocast, deterministic_algorithms, release_memory

LOSSES_AT_ONCE = 50  # are fetched from a GPU, where they stay until then


def train(config, arm, dataset, seed, device, progress=lambda steps_done, loss: None):
    """Train one arm from ``seed`` and measure it; returns ``(metrics, model)``.

    dataset: has ``train`` and ``held_out`` rows (N, S + 1) and ``vocab_size``.  The metrics are
    the keys of metrics_utils.NUMBERS, TEXTS and SERIES without the place in the experiment, and
    ``device_before`` and ``device_after`` (see ``machine.state``; not in any of the times).
    A loss that is not finite or memory that runs out ends the training with ``status`` diverged or
    out_of_memory (model None then) and a ``message``.

    Where several ranks train together, each calls it with the same arguments; the first one's
    metrics count.  Memory that runs out on one of them ends all, for the others wait.
    """
    metrics = {"device_before": device_state(device)} | _empty_metrics(seed)
    entered = time.perf_counter()
    model = None
    try:
        with deterministic_algorithms(config.deterministic):
            model = _measure(config, arm, dataset, seed, device, progress, metrics)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
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
    metrics["reach"] = None
    return metrics | {"seed": seed, "status": "ok", "message": "", "started_at": utc_now()}


def _measure(config, arm, dataset, seed, device, progress, metrics):
    """Warm up, train and evaluate; ``metrics`` gets each figure as soon as it is known.

    Returns the model, None where the training diverged.
    """
    cuda = device.type == "cuda"
    if not cuda and ranks.is_first():
        metrics["peak_memory_mb"] = child_peak_memory_mb(config, arm, dataset.vocab_size, seed)
    trainer = Trainer(config, arm, dataset.train, dataset.vocab_size, device, seed)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    metrics["compile_time"], metrics["warmup_time"] = trainer.warm_up()
    if cuda and not config.records_graphs:  # which take their memory while they are recorded
        torch.cuda.reset_peak_memory_stats(device)
    steps = planned_steps(config, len(dataset.train))
    losses, step_seconds, seconds = timed_steps(trainer, steps, progress)
    metrics |= _training_metrics(config, losses, step_seconds, seconds)
    if cuda:
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        in_mb = [peak / 2**20 for peak in ranks.largest(*peaks)]
        metrics["peak_memory_mb"], metrics["peak_reserved_mb"] = in_mb
    if not np.isfinite(losses[-1]):
        metrics["status"] = "diverged"
        metrics["message"] = f"the loss became {losses[-1]} at step {len(losses)}"
        return None
    if config.records_graphs:
        # evaluation is eager: at long lengths what the replays keep, gradients too, fills a GPU
        trainer.optimizer.zero_grad(set_to_none=True)
        release_memory(device)
    started = time.perf_counter()
    metrics["val_loss"] = trainer.evaluate(dataset.held_out)
    with autocast(config, device):
        sizes = config.seq_len, config.reach_passages, config.sequences_at_once
        metrics["reach"] = reach(trainer.model, dataset.held_out, *sizes)
    metrics["eval_time"] = time.perf_counter() - started
    return trainer.model


def timed_steps(trainer, steps, progress):
    """Train ``steps`` steps; the only timed region.

    Returns the finite losses' array (the last one is not finite where the training diverged), the
    seconds of every step and of the whole.  ``progress(steps_done, loss)`` is called after every
    step, with loss None where it has not been fetched from the device.  Losses are those of all
    ranks' rows, the seconds of the whole the slowest rank's.
    """
    config, device = trainer.config, trainer.device
    at_once = LOSSES_AT_ONCE if device.type == "cuda" else 1
    on_device = torch.empty(steps, device=device)
    losses = []
    synchronize(device)
    ranks.gather(None)  # when all are here
    started = time.perf_counter()
    marks = [_mark(device)]
    for step, batch in enumerate(trainer.batches(steps)):
        lr = learning_rate(step, steps, config.lr, config.warmup_steps, config.schedule)
        on_device[step] = trainer.step(batch, lr)
        marks.append(_mark(device))
        fetched = None
        if (step + 1) % at_once == 0 or step + 1 == steps:
            losses += ranks.mean(on_device[len(losses) : step + 1].tolist())
            fetched = losses[-1]
        progress(step + 1, fetched)
        if fetched is not None and not np.isfinite(losses[-at_once:]).all():
            break
    synchronize(device)
    seconds = ranks.largest(time.perf_counter() - started)[0]
    losses = np.array(losses, dtype=np.float32)
    broken = np.flatnonzero(~np.isfinite(losses))
    done = broken[0] + 1 if broken.size else len(losses)
    return losses[:done], _seconds_between(marks)[:done], seconds


def _mark(device):
    """A moment: of the host, or a CUDA event, which is read at the end so that no step waits."""
    if device.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(marks):
    """Seconds between one mark and the next; call after synchronizing."""
    if isinstance(marks[0], float):
        return np.diff(marks)
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]


def _training_metrics(config, losses, step_seconds, seconds):
    """The figures that follow from a training's losses and times."""
    steps = len(losses)
    tokens = steps * config.batch_size * config.seq_len
    metrics = {
        "total_steps": steps,
        "total_tokens": tokens,
        "training_time": seconds,
        "losses": losses,
        "tokens_seen": np.arange(1, steps + 1, dtype=np.int64) * (tokens // steps),
        "step_seconds": np.array(step_seconds, dtype=np.float32),
    }
    if np.isfinite(losses).all():
        metrics["tokens_per_second"] = tokens / seconds
        metrics["final_loss"] = float(losses[-1])
        metrics["avg_loss_last_100"] = float(losses[-100:].mean(dtype=np.float64))
    return metrics
