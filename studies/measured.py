"""What the measurements of a study of patterns say: speed-ups, losses, the front, the choice.

An estimate is a dict with ``mean``, ``low`` and ``high``, the ends of its 95 % t interval, None
where there is none.
"""

from analysis import words

FUSED = {"mean": 1.0, "low": None, "high": None}, {"mean": 0.0, "low": None, "high": None}


def with_interval(estimate, template):
    """An estimate with its interval in brackets, as text; "-" for None."""
    if estimate is None:
        return "-"
    numbers = estimate["mean"], estimate["low"], estimate["high"]
    return words.with_interval(*numbers, template.format)


def speed_up(time):
    """How many times as fast, an estimate, from a ratio of times and its interval."""
    low, high = (None if time[end] is None else 1 / time[end] for end in ("high", "low"))
    return {"mean": 1 / time["ratio"], "low": low, "high": high}


def measured_rows(point):
    """[(arm, its summary, speed-up over fused, an estimate)] of a point's patterns."""
    return [
        (arm, summary, speed_up(summary["contrast"]["time"]))
        for arm, summary in point["arms"].items()
        if summary.get("contrast")
    ]


def trade_offs(point):
    """{arm: (speed-up over fused, loss - that of fused)} at equal tokens, and at equal seconds.

    The validation loss after the whole training; the training loss when every training has had the
    time of the fastest one.
    """
    tokens, seconds = {"fused": FUSED}, {"fused": FUSED}
    for arm, summary, gain in measured_rows(point):
        tokens[arm] = gain, summary["contrast"]["val_loss"]
        seconds[arm] = gain, point["equal_seconds"]["differences"][arm]
    return tokens, seconds


def pareto_front(estimates):
    """The arms of {arm: (speed-up, loss)} that no other beats in both means, slowest first."""
    means = {arm: (gain["mean"], loss["mean"]) for arm, (gain, loss) in estimates.items()}

    def beaten(speed, loss):
        as_good = {(s, x) for s, x in means.values() if s >= speed and x <= loss}
        return as_good != {(speed, loss)}

    return sorted((arm for arm in means if not beaten(*means[arm])), key=means.get)


def recommend(content):
    """Sentences on which pattern to choose, one for each kind of positions."""
    return [
        f"{point['positions']} positions, S {point['seq_len']:,}: {_recommendation(point)}"
        for point in content["points"]
    ]


def _recommendation(point):
    """The fastest pattern shown to be faster than fused and not worse, or what is missing."""
    rows, margin, good, undecided = measured_rows(point), f"{point['margin']:g} nats", [], []
    for arm, summary, gain in rows:
        quality = summary["contrast"]["quality"]
        if quality["verdict"] == "not worse" and gain["low"] is not None and gain["low"] > 1:
            good.append((arm, summary, gain))
        if quality["verdict"] == "undecided":
            needed = quality["runs_needed"] or "too many"
            undecided.append(f"{arm} (about {needed})")
    if not good:
        text = f"no pattern is shown to be both faster than fused and not worse by {margin}."
        if undecided:
            text += f" Blocks that would decide whether one is worse: {', '.join(undecided)}."
        return text
    arm, summary, gain = max(good, key=lambda row: row[2]["mean"])
    loss = with_interval(summary["contrast"]["val_loss"], "{:+.4f}")
    return (
        f"{arm} is the fastest of the patterns shown to be faster than fused and not worse by "
        f"{margin} ({len(good)} of {len(rows)}): {with_interval(gain, '{:.3f}')} times as fast, "
        f"validation loss {loss}."
    )
