"""Contrast between modalities against the published loss, and against the long way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scinfl.module import _contrastive as contrastive
from scinfl.module import contrastive_loss

# What spamosaic 1.0.3 computed for 12 spots in 2 and in 3 modalities, with a temperature of .1.
REFERENCE = np.load(Path(__file__).parent / "spamosaic_reference.npz")


def draw_codes(n_spots: int, n_modalities: int, n_latent: int = 6, *, dtype=torch.float32, rng: int = 0):
    generator = torch.Generator().manual_seed(rng)
    return [torch.randn(n_spots, n_latent, generator=generator, dtype=dtype) for _ in range(n_modalities)]


def naive(codes, temperature):
    """Row by row, with all positives looked up one by one."""
    z = [F.normalize(row, dim=0) for code in codes for row in code]
    n, terms = len(codes[0]), []
    for i, own in enumerate(z):
        scores = torch.stack([own @ other / temperature for j, other in enumerate(z) if j != i])
        positives = torch.stack([own @ z[j] / temperature for j in range(i % n, len(z), n) if j != i])
        terms.append(torch.logsumexp(scores, 0) - positives.mean())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
@pytest.mark.parametrize("n_modalities", [2, 3])
def test_loss_and_gradient_are_those_of_the_published_package(n_modalities, chunk_size):
    stored = {name: torch.tensor(REFERENCE[f"contrast_{n_modalities}/{name}"]) for name in ("z", "loss", "gradient")}
    z = stored["z"].requires_grad_()
    loss = contrastive_loss(z.chunk(n_modalities), temperature=0.1, chunk_size=chunk_size)
    loss.backward()
    torch.testing.assert_close(loss, stored["loss"], rtol=1e-6, atol=0)
    # ours divides codes by their length, so its gradient has no part along them; theirs takes lengths as they are
    across = stored["gradient"] - (stored["gradient"] * stored["z"]).sum(1, keepdim=True) * stored["z"]
    torch.testing.assert_close(z.grad, across.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk_size", [1, 7, 1024])
@pytest.mark.parametrize("n_modalities", [2, 3, 5])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_loss_and_gradient_are_those_of_the_formula(temperature, n_modalities, chunk_size):
    codes = [code.requires_grad_() for code in draw_codes(9, n_modalities, dtype=torch.float64)]
    expected = naive(codes, temperature)
    gradients = torch.autograd.grad(expected, codes)
    loss = contrastive_loss(codes, temperature=temperature, chunk_size=chunk_size)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for found, gradient in zip(torch.autograd.grad(loss, codes), gradients, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [3, 100])
@pytest.mark.parametrize("n_modalities", [2, 3])
def test_gradients_are_those_of_finite_differences(n_modalities, chunk_size):
    codes = [code.requires_grad_() for code in draw_codes(4, n_modalities, 3, dtype=torch.float64)]
    assert torch.autograd.gradcheck(
        lambda *given: contrastive_loss(given, temperature=0.5, chunk_size=chunk_size), codes
    )


def test_single_precision_and_sharp_temperatures_stay_finite():
    codes = [code.requires_grad_() for code in draw_codes(50, 2)]
    loss = contrastive_loss(codes, temperature=0.01, chunk_size=16)
    expected = naive([code.double() for code in codes], 0.01)
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-5)
    loss.backward()
    assert all(torch.isfinite(code.grad).all() for code in codes)


def test_equal_modalities_are_best_and_shuffled_ones_worst():
    (code,) = draw_codes(40, 1)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    paired, shuffled = contrastive_loss([code, code]), contrastive_loss([code, code[order]])
    noisy = contrastive_loss([code, code + 0.5 * draw_codes(40, 1, rng=2)[0]])
    assert paired < noisy < shuffled
    opposite = contrastive_loss([code, -code])
    assert opposite > shuffled


def test_length_of_codes_and_order_of_modalities_and_of_spots_do_not_matter():
    one, other, third = draw_codes(20, 3)
    loss = contrastive_loss([one, other, third])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for same in ([third, one, other], [7 * one, other, 0.1 * third], [code[order] for code in (one, other, third)]):
        torch.testing.assert_close(contrastive_loss(same), loss)


def test_one_spot_has_nothing_to_be_contrasted_with_but_itself():
    torch.testing.assert_close(contrastive_loss(draw_codes(1, 2)), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_every_row_is_compared_and_no_more_than_a_chunk_at_a_time(monkeypatch):
    sizes, compare = [], contrastive._log_sums

    def spy(rows, start, stop, temperature):
        sizes.append(stop - start)
        return compare(rows, start, stop, temperature)

    monkeypatch.setattr(contrastive, "_log_sums", spy)
    codes = [code.requires_grad_() for code in draw_codes(11, 2)]
    loss = contrastive_loss(codes, chunk_size=5)
    assert sizes == [5, 5, 5, 5, 2]
    loss.backward()
    assert sorted(sizes[5:]) == [2, 5, 5, 5, 5]  # once more, instead of being kept


def test_codes_that_do_not_fit_together_are_refused():
    one, other = draw_codes(5, 2)
    with pytest.raises(ValueError, match=r"at least 2 modalities, found 1 of shapes \[\(5, 6\)\]"):
        contrastive_loss([one])
    with pytest.raises(
        ValueError, match=r"found 2 of shapes \[\(4, 6\), \(5, 6\)\].*Pass the spots that were measured"
    ):
        contrastive_loss([one, other[1:]])
    with pytest.raises(ValueError, match="found 0 of shapes"):
        contrastive_loss([])


MEASURE = """
import resource, sys, torch
from scinfl.module import contrastive_loss
torch.set_num_threads(1)
torch.manual_seed(0)
codes = [torch.randn(8000, 32, requires_grad=True) for _ in range(2)]
contrastive_loss([code[:64] for code in codes]).backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
contrastive_loss(codes, chunk_size=int(sys.argv[1])).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def peak_bytes(chunk_size: int, **environment: str) -> int:
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, str(chunk_size)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    return int(ran.stdout)


@pytest.mark.slow
def test_memory_grows_with_the_chunk_and_stays_far_below_all_pairs():
    all_pairs = 16_000**2 * 4
    peak = peak_bytes(1024)
    assert peak < 0.35 * all_pairs
    # glibc keeps freed blocks below 32 MB on its heap and does not find them again; this gives them back
    assert peak_bytes(256, MALLOC_MMAP_THRESHOLD_="1000000") < peak / 2
