"""The examples of docs/your_model.md run as they stand there."""

import re

import pytest
import torch
from conftest import ROOT

EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "docs/your_model.md").read_text(), re.S)


@pytest.mark.parametrize("example", EXAMPLES, ids=["transformers", "flash", "step"])
def test_an_example_runs(example):
    if "transformers" in example:
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = {}
    exec(example, names)
    if "loss" in names:
        assert names["loss"] < 3  # of log 64 = 4.2
    else:
        assert names["out"].shape == names["q"].shape
