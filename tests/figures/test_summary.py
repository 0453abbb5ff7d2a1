"""Figure 9: contrasts, their ratios and the verdicts in words."""

import pytest
from conftest import make_experiment

from analysis.significance import Ratio
from analysis.values import TIME, VAL_LOSS
from figures.all import draw
from figures.data import prepare
from figures.values import ratio_verdict, shown_pairs, verdict_on


def with_losses(*differences, margin=0.02):
    """baseline and window whose validation losses differ by ``differences``, block by block."""
    metrics, metadata = make_experiment(len(differences), ("baseline", "window"))
    metadata["plan"]["equivalence_margin"] = margin
    for base, training, difference in zip(*metrics.values(), differences, strict=True):
        base["val_loss"] = 4.0 + 0.1 * training["block"]
        training["val_loss"] = base["val_loss"] + difference
    return prepare(metrics, metadata)


@pytest.mark.parametrize(
    "ratio, words",
    [
        ((0.8, 0.7, 0.9, 0.01, 5), "-20.00 %"),
        ((1.0012, 1.001, 1.0014, 0.01, 5), "+0.12 %"),
        ((0.9, 0.7, 1.1, 0.4, 5), "no difference detected"),
        ((0.99998, None, None, None, 5), "equal to 0.01 % in every block"),
        ((1.00002, None, None, None, 1), "equal to 0.01 %, one block"),
        ((0.5, None, None, None, 5), "-50.00 % in every block"),
        ((0.5, None, None, None, 1), "-50.00 %, one block"),
    ],
)
def test_verdicts_name_only_what_the_test_found(ratio, words):
    assert ratio_verdict(Ratio(*ratio)) == words


@pytest.mark.parametrize(
    "differences, words",
    [
        ((0.001, 0.004, -0.002, 0.003), "not worse (margin 0.02 nats)"),
        ((0.05, 0.06, 0.055, 0.05), "worse"),
        ((0.01, 0.03, 0.02, 0.015), "undecided"),
        ((0.0125, 0.0165, 0.0105, 0.0195), "not worse (margin 0.02 nats)"),  # undecided at 95 %
        ((0.02,), "+0.50 %, one block"),
    ],
)
def test_with_a_margin_the_verdict_on_the_loss_is_about_the_margin(differences, words):
    data = with_losses(*differences)
    assert verdict_on(data, "window", "baseline", VAL_LOSS) == words
    assert words in draw("9_summary", data).axes[3].texts[0].get_text().replace("−", "-")


@pytest.mark.parametrize("margin", [0.02, 0.5])
def test_the_margin_lies_around_each_rows_reference_and_inside_the_axis(margin, artists, caption):
    data = with_losses(0.001, 0.0012, 0.0011, margin=margin)
    fig = draw("9_summary", data)
    ((bar,),) = artists(fig.axes[3], "_margin 0")
    reference = data.values("baseline", VAL_LOSS).mean()
    ends = bar.get_x(), bar.get_x() + bar.get_width()
    assert ends == pytest.approx((1 - margin / reference, 1 + margin / reference))
    low, high = fig.axes[3].get_xlim()
    assert low < ends[0] and ends[1] < high
    assert f"± {margin:g} nats" in caption(fig) and "90 % t interval" in caption(fig)


@pytest.mark.parametrize("margin", [None, 0])
def test_without_a_margin_nothing_is_shaded_and_the_ratio_is_judged(margin, artists, caption):
    data = with_losses(0.05, 0.06, 0.055, 0.05, margin=margin)
    fig = draw("9_summary", data)
    assert not artists(fig.axes[3], "_margin 0") and "margin" not in caption(fig)
    assert verdict_on(data, "window", "baseline", VAL_LOSS) == "+1.30 %"


def test_one_percent_is_shaded_for_time_and_memory_alone(prepared, artists):
    spans = [artists(ax, "_small") for ax in draw("9_summary", prepared("four blocks")).axes]
    assert [len(found) for found in spans] == [1, 1, 0, 0]
    (span,) = spans[0]
    assert (span.get_x(), span.get_width()) == pytest.approx((0.99, 0.02))


@pytest.mark.parametrize(
    "arms, expected",
    [
        (("window", "fused"), [("window", "fused")]),
        (("window",), []),
        (("fused", "w8-d2"), [("w8-d2", "fused")]),
        (
            ("baseline", "window", "fused"),
            [("window", "fused"), ("fused", "baseline"), ("window", "baseline")],
        ),
    ],
)
def test_contrasts_follow_the_arms(arms, expected, prepared):
    assert shown_pairs(prepared(2, arms)) == expected


def test_untrained_arms_get_no_verdict_on_their_loss():
    metrics, metadata = make_experiment(4)
    metadata["data"]["unigram_loss"] = 1.0
    data = prepare(metrics, metadata)
    assert verdict_on(data, "window", "fused", VAL_LOSS) == "not trained: says nothing"
    assert "not trained" not in verdict_on(data, "window", "fused", TIME)
