"""The reach probe against models whose reach is known."""

import math

import numpy as np
import pytest
import torch
from tiny import CPU, VOCABULARY, tiny_config, tiny_dataset
from torch import nn

from analysis.reach import PASSAGE
from machine import ranks
from training import train as training_train
from training.reach import POSITION_BINS, probed_distances, reach, second_showing_loss
from training.train import train

SURE = 9.0  # logit of the token that a model here predicts; 0 for all others


class Copier(nn.Module):
    """Predicts what followed the token's last showing, where ``sees(tokens since then)``."""

    def __init__(self, vocab_size, sees):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))  # tells the device
        self.vocab_size, self.sees = vocab_size, sees

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, self.vocab_size)
        for row, predicted in zip(tokens.tolist(), logits, strict=True):
            last = {}
            for t, token in enumerate(row):
                if token in last and self.sees(t - last[token]):
                    predicted[t, row[last[token] + 1]] = SURE
                last[token] = t
        return logits


def distinct_rows(count, seq_len):
    """Rows in which no token comes twice: nothing but the probe can repeat one."""
    tokens = np.random.default_rng().permutation(count * (seq_len + 1))
    return tokens.reshape(count, seq_len + 1).astype(np.uint16)


def loss_where_sure(vocab_size):
    return math.log(1 + (vocab_size - 1) * math.exp(-SURE))


@pytest.mark.parametrize(
    ("sees", "share"),
    [
        (lambda r: r <= 256, [1, 1, 0, 0]),
        (lambda r: r < 512, [1, 1, 15 / 16, 0]),  # 512 to 497 tokens back, in turns
        (lambda r: r % 4 == 3, [1 / 4] * 4),  # a dilated pattern is met evenly
        (lambda r: r > 600, [0, 0, 0, 1]),
        (lambda r: False, [0] * 4),
    ],
)
def test_the_gain_ends_where_a_model_ends_to_see(sees, share):
    rows = distinct_rows(3, 700)
    found = reach(Copier(rows.size, sees), rows, 700, passages=16, at_once=5)
    assert found["passages"] == 16 and found["distances"] == [128, 256, 512, 636]
    sure = math.log(rows.size) - loss_where_sure(rows.size)
    np.testing.assert_allclose(found["gains"], sure * np.array(share), rtol=1e-5)
    spread = np.sqrt(np.array(share) * (1 - np.array(share)) / 15)  # of 16 that gain or do not
    np.testing.assert_allclose(found["gain_errors"], sure * spread, rtol=1e-5, atol=1e-6)


def test_the_loss_of_a_second_showing_is_that_of_its_passage_alone():
    rows = distinct_rows(9, 192)
    model = Copier(rows.size, lambda r: True)
    found = second_showing_loss(model, rows, 192, 3, at_once=2)
    assert found == pytest.approx(loss_where_sure(rows.size), rel=1e-5)
    assert second_showing_loss(model, rows, 191, 3) is None  # too short for the probe


def bigram_model():
    """Dropout, and logits that follow from the token alone."""
    layers = nn.Embedding(VOCABULARY, 8), nn.Dropout(0.5), nn.Linear(8, VOCABULARY)
    return nn.Sequential(*layers).train()


def test_a_model_without_context_gains_exactly_nothing_and_stays_in_training():
    model, rows = bigram_model(), tiny_dataset(20, seq_len=300).held_out
    found = reach(model, rows, 300, passages=7, at_once=2)
    assert found["gains"] == found["gain_errors"] == [0.0] * 2
    assert model.training and all(p.grad is None for p in model.parameters())


class Recorder(nn.Module):
    """Keeps every sequence that it is given."""

    def __init__(self):
        super().__init__()
        self.model, self.seen = bigram_model(), []

    def forward(self, tokens):
        self.seen += tokens.tolist()
        return self.model(tokens)


def test_sequences_differ_in_the_first_showing_alone_and_are_the_same_for_every_model():
    rows, recorders = tiny_dataset(140, seq_len=200).held_out, [Recorder(), Recorder()]
    for recorder in recorders:
        reach(recorder, rows, 200, passages=9, at_once=4)
    assert recorders[0].seen == recorders[1].seen
    controls, *shown = np.array(recorders[0].seen).reshape(3, 9, 200)
    assert probed_distances(200) == [128, 136]
    known = {tuple(row[:PASSAGE]) for row in rows}
    used = set()
    for i, control in enumerate(controls):
        used.add(tuple(control[:PASSAGE]))
        passage = control[201 - PASSAGE :]  # the last token is only predicted
        own = next(row for row in rows if (row[:137] == control[:137]).all())
        others = [row for row in rows if row is not own]
        assert sum(bytes(passage.astype(np.uint16)) in bytes(row) for row in others) == 1
        for distance, sequences in zip((128, 136), shown, strict=True):
            first = 201 - PASSAGE - distance + i
            rest = np.r_[0:first, first + PASSAGE : 200]
            assert (sequences[i][rest] == control[rest]).all()
            assert (sequences[i][first : first + PASSAGE - 1] == passage).all()
    assert used == known  # rows come again only after every one was used


class FirstToken(nn.Module):
    """Predicts the sequence's first token, the surer the more tokens precede."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, VOCABULARY)
        sure = torch.arange(1, tokens.shape[1] + 1) / 50
        logits.scatter_(2, tokens[:, :1, None].expand(*tokens.shape, 1), sure[None, :, None])
        return logits


def test_losses_by_position_are_those_of_the_row_and_not_of_the_passage():
    rows = np.arange(5)[:, None].repeat(193, axis=1).astype(np.uint16)  # row n: token n alone
    found = reach(FirstToken(), rows, 192, passages=10)
    precede = np.arange(1, 129).reshape(POSITION_BINS, 4)
    losses = np.log(1 + (VOCABULARY - 1) * np.exp(-precede / 50))
    np.testing.assert_allclose(found["positions"], precede.mean(axis=1))
    np.testing.assert_allclose(found["position_losses"], losses.mean(axis=1), rtol=1e-5)


def test_the_distances_double_up_to_the_farthest():
    assert probed_distances(4096) == [128, 256, 512, 1024, 2048, 4032]
    assert probed_distances(192) == [128] and probed_distances(193) == [128, 129]
    assert probed_distances(320) == [128, 256] and probed_distances(191) == []


@pytest.mark.parametrize(("rows", "seq_len", "passages"), [(4, 191, 9), (1, 192, 9), (4, 192, 1)])
def test_what_is_too_little_gives_no_probe(rows, seq_len, passages):
    held_out = np.zeros((rows, seq_len + 1), np.uint16)
    assert reach(bigram_model(), held_out, seq_len, passages) is None


def test_ranks_share_the_passages_and_all_get_the_whole(monkeypatch):
    rows = distinct_rows(3, 300)
    arguments = Copier(rows.size, lambda r: r < 250), rows, 300, 5
    alone, parts = reach(*arguments), []
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "gather", lambda mine: parts.append(mine) or [mine])
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        reach(*arguments)
    assert [len(gains) for gains, _ in parts] == [3, 2]
    monkeypatch.setattr(ranks, "gather", lambda mine: list(parts))
    together = reach(*arguments)
    for key, value in alone.items():
        assert together[key] == pytest.approx(value)


def test_a_training_is_probed_after_its_evaluation_and_is_no_other_for_it(monkeypatch):
    monkeypatch.setattr(training_train, "child_peak_memory_mb", lambda *_: 12.5)
    dataset, results = tiny_dataset(seq_len=192), {}
    for passages in (0, 3):
        config = tiny_config(seq_len=192, reach_passages=passages, dtype="bfloat16")
        results[passages], model = train(config, "window", dataset, 7, CPU)
    assert results[0]["reach"] is None
    found = results[3]["reach"]
    assert found["passages"] == 3 and found["distances"] == [128]
    with torch.autocast("cpu", torch.bfloat16):
        again = reach(model, dataset.held_out, 192, 3)
    for key, value in again.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-3)
    assert results[0]["losses"].tobytes() == results[3]["losses"].tobytes()
    assert results[0]["val_loss"] == results[3]["val_loss"]
