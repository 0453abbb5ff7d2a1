"""What a reader must know before the figures, and what may have disturbed a measurement."""

import numpy as np

from analysis.contrasts import contrasts_of
from analysis.significance import ALPHA
from analysis.spread import unsteady
from analysis.values import (
    SMOKE_MARK,
    is_smoke_test,
    not_trained,
    ok_trainings,
    ok_values,
    paired_trainings,
    smooth,
    throttled,
    trainings_of,
)

RECORDED = {  # of a device's state, before and after a training
    "load_average_1min": "load average",
    "other_processes": "other processes",
    "sm_clock_mhz": "clock in MHz",
    "temperature_c": "degrees Celsius",
}
NOISY_SHARE = 0.10  # of the mean: pyperf's limit for calling times unstable
WAITED_SHARE = 0.05  # of the time; one other busy program takes 6 % of 16 threads on 16 cores
# A step is held up where it takes more than HELD_UP medians.  If more than HELD_UP_STEPS of all
# steps do, that is how the arm trains; fewer are told where they cost HELD_UP_TIME of the training
# time (effects here are a few percent).
HELD_UP, HELD_UP_STEPS, HELD_UP_TIME = 1.5, 0.02, 0.015
# A loss has risen where its moving mean rose by more than so many nats and so many of its standard
# errors.  The rise is the largest among many: 40 % of flat curves pass 5 errors somewhere, but none
# of some thousand simulated with normal noise passed 8.
RISEN, RISEN_ERRORS = 0.1, 8
FEWEST_MEANT, MEANT_SHARE = 10, 0.05  # steps of the moving mean: this share of all, no fewer


def disturbances(measured):
    """What was seen to disturb a measurement, [(in words, how much or "")].

    measured: a dict with ``device_before`` and ``device_after`` (machine/state.py), None where
    nothing was recorded, and of a benchmark ``samples_ms``, its times round by round.
    """
    before = measured.get("device_before") or {}
    after = measured.get("device_after") or {}
    states = before, after
    found = []
    if all("waited_s" in state for state in states):
        ran, waited = (after[key] - before[key] for key in ("ran_s", "waited_s"))
        if waited > WAITED_SHARE * (ran + waited):
            share = f"{waited / (ran + waited):.0%} of the time"
            found.append(("threads waited for a core that others had", share))
    elif all(state.get("load_average_1min", 0) > state.get("cores", np.inf) for state in states):
        load = " then ".join(f"{state['load_average_1min']:.1f}" for state in states)
        found.append(("more was running than there are cores", f"load average {load}"))
    if reasons := throttled(measured):
        found.append(("the device slowed itself down", ", ".join(reasons)))
    if any(state.get("other_processes") for state in states):
        found.append(("other processes were using the device", ""))
    if _unsteady_rounds(measured.get("samples_ms", ())):
        found.append((f"times spread or drift by {NOISY_SHARE:.0%} or more", ""))
    return found


def in_words(disturbance):
    """One of ``disturbances`` as a text, with how much of it in brackets where that is known."""
    what, how_much = disturbance
    return f"{what} ({how_much})" if how_much else what


def _unsteady_rounds(times):
    """Whether times spread (half the interquartile range) or drift (from half to half) too far."""
    half = len(times) // 2
    if not half:
        return False
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    drift = np.median(times[-half:]) / np.median(times[:half]) - 1
    return max((high - low) / 2 / middle, abs(drift)) >= NOISY_SHARE


def split_blocks(metrics):
    """The blocks whose trainings were not all made by one process."""
    processes = {}
    for _, training in trainings_of(metrics):
        processes.setdefault(training["block"], set()).add(training["process"])
    return sorted(block for block, names in processes.items() if len(names) > 1)


def _recorded(training):
    """Block, time and what was recorded of the device around a training, in words."""
    words = [f"{training['training_time']:,.2f} s"]
    states = [training["device_before"] or {}, training["device_after"] or {}]
    for key, name in RECORDED.items():
        values = [state[key] for state in states if state.get(key) is not None]
        if values:
            words.append(f"{name} {' then '.join(f'{value:,.4g}' for value in values)}")
    words += throttled(training)
    if len(words) == 1:
        words.append("nothing recorded of the device")
    return f"block {training['block'] + 1} ({', '.join(words)})"


def _time_warnings(metrics):
    for arm in metrics:
        times = ok_values(metrics, arm, "training_time")
        share = times.std(ddof=1) / times.mean() if times.size > 1 else 0.0
        if share >= NOISY_SHARE:
            ended_well = [t for t in metrics[arm] if t["status"] == "ok"]
            fastest, *_, slowest = sorted(ended_well, key=lambda t: t["training_time"])
            yield (
                f"{arm}: the training time varies by {share:.0%} (standard deviation) from block "
                f"to block, fastest {_recorded(fastest)}, slowest {_recorded(slowest)}."
            )


def _training_warnings(metrics):
    """A warning for every training of which a few steps cost much, and for every disturbance."""
    disturbed = {}
    for arm, training in ok_trainings(metrics):
        block = f"block {training['block'] + 1}"
        for what, how_much in disturbances(training):
            place = block + f" ({how_much})" * bool(how_much)
            disturbed.setdefault((arm, what), []).append(place)
        steps = np.asarray(training["step_seconds"], dtype=np.float64)
        usual = np.median(steps)
        held_up = steps > HELD_UP * usual
        few = held_up.sum() <= max(1, HELD_UP_STEPS * steps.size)
        cost = (steps[held_up] - usual).sum() / steps.sum()
        if few and cost >= HELD_UP_TIME:
            yield (
                f"{arm}, {block}: {held_up.sum()} of {steps.size} steps took more than "
                f"{HELD_UP:g} times the median ({1e3 * usual:,.1f} ms; step {steps.argmax() + 1}: "
                f"{1e3 * steps.max():,.1f} ms) and cost {cost:.1%} of the training time: something "
                "held them up; they are kept."
            )
    for (arm, what), places in disturbed.items():
        yield f"{arm}: {what}: {', '.join(places)}."


def _failure_warnings(metrics):
    failed = len(trainings_of(metrics)) - len(ok_trainings(metrics))
    if failed > 1:
        yield f"{failed} trainings failed: with more than one, take no comparison as valid."
    blocks = {
        f"{arm} against {reference}": len(paired_trainings(metrics, (arm, reference)))
        for arm, reference, _ in contrasts_of(metrics)
    }
    counts = set(blocks.values()) - {0}
    fewest = min(counts, default=0)
    whose = ""
    if len(counts) > 1:
        whose = ", ".join(name for name, count in blocks.items() if count == fewest) + ": "
    if fewest == 1:
        yield f"{whose}One block: no spread, no test. Use --runs 6 or more for both."
    least = 2 / 2**fewest  # the smallest p of the two-sided sign-flip test
    if fewest >= 2 and least >= ALPHA:
        yield (
            f"{whose}{fewest} blocks: the exact test cannot go below p {least:.4g}, so it cannot "
            f"reach {ALPHA} whatever the data. Use --runs 6 or more."
        )


def risen(losses, first):
    """The largest rise of a loss above what it had fallen to, from step ``first`` (from 0) on.

    losses: (steps,) in nats, smoothed by a centred moving mean whose standard error is taken from
    the differences between successive steps.  Returns ((step, loss) of the low, (step, loss) of
    the high), steps from 1; None where nothing rose beyond the noise, or for few steps.
    """
    after = np.asarray(losses, dtype=np.float64)[first:]
    width = max(FEWEST_MEANT, int(MEANT_SHARE * after.size))
    if after.size < 3 * width:
        return None
    (means,) = smooth([after], width)
    rises = means - np.minimum.accumulate(means)
    high = rises.argmax()
    error = np.diff(after).std() / np.sqrt(2 * width)
    if rises[high] <= max(RISEN, RISEN_ERRORS * error):
        return None
    low = means[:high].argmin()
    return tuple(
        (int(first + place + width // 2 + 1), float(means[place])) for place in (low, high)
    )


def _rise_warnings(metrics, metadata):
    for arm, training in ok_trainings(metrics):
        if found := risen(training["losses"], metadata["config"]["warmup_steps"]):
            (low_step, low), (high_step, high) = found
            yield (
                f"{arm}, block {training['block'] + 1}: the loss rose from {low:.2f} (step "
                f"{low_step:,}) to {high:.2f} (step {high_step:,}) after the warm-up."
            )


def _spread_warnings(metrics):
    for arm, found in unsteady(metrics).items():
        yield (
            f"{arm}: the validation losses {found}: its mean may stand for no training, look at "
            "every block (figures 1 and 8)."
        )


def _untrained_warnings(metrics, metadata):
    if arms := not_trained(metrics, metadata):
        yield (
            f"NOT TRAINED: {', '.join(arms)} ended above the validation loss of always predicting "
            f"the frequencies of tokens ({metadata['data']['unigram_loss']:.3f} nats): the losses "
            "say nothing about quality. Train longer (--max-steps, more data)."
        )


def measurement_warnings(metrics):
    """What may have disturbed the measurements of an experiment, a sentence each."""
    cut = (
        "was cut in two by a stop: its arms were not trained next to one another, so what drifts "
        "may not cancel in it."
    )
    return [
        *(f"block {block + 1} {cut}" for block in split_blocks(metrics)),
        *_time_warnings(metrics),
        *_training_warnings(metrics),
    ]


def find_warnings(metrics, metadata):
    """What a reader must know before the figures, a sentence each."""
    mixed = "MIXED: trainings that differ were taken together (--allow-mixed)"
    return [
        *([SMOKE_MARK] if is_smoke_test(metadata) else []),
        *(f"{mixed}: {line}" for line in metadata["mixed"]),
        *_untrained_warnings(metrics, metadata),
        *_failure_warnings(metrics),
        *_rise_warnings(metrics, metadata),
        *_spread_warnings(metrics),
        *measurement_warnings(metrics),
    ]
