"""What the measurements of a study of patterns say: speed-ups, losses, the front, the choice.

An estimate is a dict with ``mean``, ``low`` and ``high``, the ends of its 95 % t interval, None
where there is none.
"""

FUSED = {"mean": 1.0, "low": None, "high": None}, {"mean": 0.0, "low": None, "high": None}


def with_interval(estimate, template):
    """An estimate with its interval in brackets, as text."""
    if estimate is None:
        return "-"
    mean = template.format(estimate["mean"])
    if estimate["low"] is None:
        return mean
    return f"{mean} [{template.format(estimate['low'])}, {template.format(estimate['high'])}]"


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


def equal_tokens(point):
    """{arm: (speed-up over fused, validation loss - that of fused)}, fused's own exact."""
    rows = measured_rows(point)
    return {"fused": FUSED} | {arm: (gain, s["contrast"]["val_loss"]) for arm, s, gain in rows}


def equal_seconds(point):
    """The same with the training loss when every training has had the time of the fastest."""
    rows = measured_rows(point)
    losses = point["equal_seconds"]["differences"] if rows else {}
    return {"fused": FUSED} | {arm: (gain, losses[arm]) for arm, _, gain in rows}


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
    rows, margin = measured_rows(point), f"{point['margin']:g} nats"
    quality = {arm: summary["contrast"]["quality"] for arm, summary, _ in rows}
    faster = [arm for arm, _, gain in rows if gain["low"] is not None and gain["low"] > 1]
    not_worse = [arm for arm in quality if quality[arm]["verdict"] == "not worse"]
    good = [row for row in rows if row[0] in faster and row[0] in not_worse]
    if good:
        arm, summary, gain = max(good, key=lambda row: row[2]["mean"])
        loss = summary["contrast"]["val_loss"]
        return (
            f"{arm} is the fastest of the patterns shown to be faster than fused and not worse by "
            f"{margin} ({len(good)} of {len(rows)}): {with_interval(gain, '{:.3f}')} times as "
            f"fast, validation loss {with_interval(loss, '{:+.4f}')}."
        )
    undecided = [
        f"{arm} (about {found['runs_needed'] or 'too many'} blocks would decide)"
        for arm, found in quality.items()
        if found["verdict"] == "undecided"
    ]
    return (
        f"no pattern is shown to be both faster than fused and not worse by {margin}; faster: "
        f"{_names(faster)}; not worse: {_names(not_worse)}; undecided: {_names(undecided)}."
    )


def _names(arms):
    return ", ".join(arms) or "none"
