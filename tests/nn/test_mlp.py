"""Multilayer perceptron."""

from __future__ import annotations

import torch

from scinfl.nn import MLP


def test_dropped_features_take_the_value_to_fill_with_and_the_others_keep_their_mean():
    dropout = MLP(3, 4, 1, input_dropout=0.5)[0]
    x = torch.tensor([1.0, 20.0, -30.0]).expand(4000, 3)
    assert set(dropout(x).unique().tolist()) == {0.0, 2.0, 40.0, -60.0}
    dropout.fill = torch.tensor([1.0, 19.0, -30.0])
    found = dropout(x)
    assert set(found.unique().tolist()) == {1.0, 19.0, 21.0, -30.0}
    torch.testing.assert_close(found.mean(0), x[0], atol=0.1, rtol=0)
    torch.testing.assert_close(dropout.eval()(x), x)
