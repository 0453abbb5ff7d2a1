"""What a reader must know before the figures, and what may have disturbed a measurement."""

import math

import numpy as np

from analysis.contrasts import contrasts_of
from analysis.drift import outlying
from analysis.power import ALPHA
from analysis.significance import smallest_p
from analysis.values import OUTCOMES, in_order, ok_values, ordered_arms, shared_values, throttled

NOISY_SHARE, FAR_SHARE = 0.10, 0.50  # of the mean: pyperf's limits for calling runs unstable
FAR_OUT = 3.0  # interquartile ranges (Tukey 1977)
SLOW_SHARE = 0.10  # by which the first training must be slower than the slowest other
# a step is held up beyond this many medians; more than this share of them are the arm's own way,
# fewer are told where they cost this share of the training time (effects here are a few percent)
HELD_UP, HELD_UP_STEPS, HELD_UP_TIME = 1.5, 0.02, 0.015


def outlying_runs(metrics, ranges=1.5):
    """[(arm, run, outcome's words, value)] of the values outside Tukey's fences of their arm."""
    found = []
    for arm in ordered_arms(metrics):
        for key, words, *_ in OUTCOMES:
            runs = [r for r in metrics[arm] if r["status"] == "ok" and math.isfinite(r[key])]
            if runs:
                flags = outlying([run[key] for run in runs], ranges)
                found += [
                    (arm, run["block"], words, run[key])
                    for run, flag in zip(runs, flags, strict=True)
                    if flag
                ]
    return found


# --- warnings ----------------------------------------------------------------------------------
def split_blocks(metrics):
    """The runs (blocks) whose trainings were not all made by one launch of the program."""
    launches = {}
    for run in in_order(metrics):
        launches.setdefault(run["block"], set()).add(run["process"])
    return sorted(run for run, ids in launches.items() if len(ids) > 1)


def _spread_warnings(metrics):
    for arm in ordered_arms(metrics):
        times = ok_values(metrics, arm, "training_time")
        if times.size < 2:
            continue
        mean, deviation = times.mean(), times.std(ddof=1)
        if deviation >= NOISY_SHARE * mean:
            yield (
                f"{arm}: the training time varies by {deviation / mean:.0%} (standard deviation) "
                "from run to run: is another program using the machine?"
            )
        far = max(times, key=lambda seconds: abs(seconds - mean))
        if abs(far - mean) >= FAR_SHARE * mean:
            words = "more" if far > mean else "less"
            share = abs(far - mean) / mean
            yield f"{arm}: a training took {far:.2f} s, {share:.0%} {words} than the mean."


def _stall_warnings(metrics):
    """Trainings of which a few steps cost much of the time: no property of the arm."""
    for arm in ordered_arms(metrics):
        for run in metrics[arm]:
            steps = np.asarray(run["step_seconds"], dtype=np.float64)
            if run["status"] != "ok" or not steps.size or not np.isfinite(steps).all():
                continue
            usual, longest = float(np.median(steps)), int(np.argmax(steps))
            held_up = steps > HELD_UP * usual
            few = held_up.sum() <= max(1, HELD_UP_STEPS * steps.size)
            at_worst = f"step {longest + 1}: {1e3 * steps[longest]:,.1f} ms"
            cost = (steps[held_up] - usual).sum() / steps.sum() if usual > 0 else 0
            if few and cost >= HELD_UP_TIME:
                yield (
                    f"{arm}, run {run['block'] + 1}: {held_up.sum()} of {steps.size} steps took "
                    f"more than {HELD_UP:g} times the median ({1e3 * usual:,.1f} ms; {at_worst}) "
                    f"and cost {cost:.1%} of the training time: something held them up; they are "
                    "kept."
                )


def _outlier_warnings(metrics):
    for arm, run, words, value in outlying_runs(metrics, FAR_OUT):
        yield f"{arm}, run {run + 1}: {words} {value:,.4g} is far from the others'; it is kept."
    first = next(iter(in_order(metrics)), None)
    for arm in metrics:
        if first is not None and any(run is first for run in metrics[arm]):
            others = [r["training_time"] for r in metrics[arm] if r is not first]
            others = [seconds for seconds in others if math.isfinite(seconds)]
            if len(others) > 1 and first["training_time"] > max(others) * (1 + SLOW_SHARE):
                yield (
                    f"{arm}: the very first training took longer than every other: was the "
                    "machine still busy or cold?"
                )


def _device_warnings(metrics):
    for arm in ordered_arms(metrics):
        for run in metrics[arm]:
            if run["status"] != "ok":  # no comparison has its time
                continue
            place = f"{arm}, run {run['block'] + 1}"
            if words := throttled(run):
                yield f"{place}: the device slowed itself down ({', '.join(words)})."
            states = (run["device_before"], run["device_after"])
            if any(state and state.get("other_processes") for state in states):
                yield f"{place}: other processes were using the device."


def _mixed_warnings(metadata):
    for line in metadata.get("mixed", ()):
        yield f"MIXED: trainings that differ were taken together (--allow-mixed): {line}"


def _history_warnings(metrics, metadata):
    for run in split_blocks(metrics):
        yield (
            f"run {run + 1} was cut in two by a stop: its arms were not trained next to one "
            "another, so what drifts may not cancel in it."
        )
    for name in metadata.get("set_aside", ()):
        yield f"a damaged file was set aside (set_aside/{name}) and its training repeated."


def _plan_warnings(metadata):
    alpha = metadata.get("plan", {}).get("alpha", ALPHA)
    if alpha != ALPHA:
        yield f"the plan declares alpha {alpha}, and this version of the suite tests at {ALPHA}."


def _failure_warnings(metrics):
    failed = [run for run in in_order(metrics) if run["status"] != "ok"]
    if len(failed) > 1:
        yield f"{len(failed)} trainings failed: with more than one, take no comparison as valid."
    pairs = [shared_values(metrics, c[:2], "training_time")[0] for c in contrasts_of(metrics)]
    blocks = min((pair.size for pair in pairs), default=0)
    if blocks == 1:
        yield "One run: no spread, no test. Use --runs 6 or more for both."
    if blocks >= 2 and smallest_p(blocks) >= ALPHA:
        yield (
            f"{blocks} runs: the exact tests cannot go below p {smallest_p(blocks):.4g}, so they "
            f"cannot reach {ALPHA} whatever the data. Use --runs 6 or more."
        )


def measurement_warnings(metrics, metadata):
    """What may have disturbed the measurements of an experiment, a sentence each."""
    return [
        *_history_warnings(metrics, metadata),
        *_spread_warnings(metrics),
        *_stall_warnings(metrics),
        *_outlier_warnings(metrics),
        *_device_warnings(metrics),
    ]


def find_warnings(metrics, metadata):
    """What a reader must know before the figures, a sentence each."""
    return [
        *_plan_warnings(metadata),
        *_mixed_warnings(metadata),
        *_failure_warnings(metrics),
        *measurement_warnings(metrics, metadata),
    ]
