"""The network of SpaMosaic against the published one, and its losses against the long way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scinfl.model.spamosaic._batches import propagated
from scinfl.model.spamosaic._spatial_graph import merged_graph, original_propagation, spatial_graph
from scinfl.module import SpaMosaicModule, SpotBatch, contrastive_loss
from scinfl.nn import keyed, keyed_layers, set_key

# What spamosaic 1.0.3 computed for a mosaic of 3 sections of 20 spots, with random parameters: section 0 measured RNA
# and protein, section 1 RNA and section 2 protein.
REFERENCE = np.load(Path(__file__).parent / "spamosaic_reference.npz")
MODALITIES = ("rna", "adt")
NAMES = {"fc1": "encoders.{}.0", "bn": "encoders.{}.2", "fc2": "encoders.{}.4", "decoder": "decoders.{}"}


def stored(name: str) -> torch.Tensor:
    return torch.from_numpy(REFERENCE[name])


def propagated_features(modality: str) -> torch.Tensor:
    """By our graph and hops."""
    coordinates, section, pairs = (
        REFERENCE[f"{modality}/{n}"] for n in ("coordinates", "section", "mutual_neighbours")
    )
    spatial = spatial_graph(coordinates, section, n_neighbours=4, directed=True)
    hop = original_propagation(merged_graph(spatial, pairs, 0.8))
    return torch.from_numpy(np.hstack(propagated(REFERENCE[f"{modality}/x"], hop, 2)))


def reference_module(dropout: float = 0.2) -> SpaMosaicModule:
    """With the stored parameters of both networks."""
    n_features = {modality: REFERENCE[f"{modality}/x"].shape[1] for modality in MODALITIES}
    module = SpaMosaicModule(
        {modality: 3 * n for modality, n in n_features.items()},
        n_features,
        n_latent=8,
        n_hidden=16,
        norm="batch",
        dropout=dropout,
    )
    state = {}
    for modality in MODALITIES:
        prefix = f"{modality}/state/"
        for name in (name.removeprefix(prefix) for name in REFERENCE if name.startswith(prefix)):
            layer, parameter = name.split(".")
            state[f"{NAMES[layer].format(modality)}.{parameter}"] = stored(prefix + name)
    module.load_state_dict(state)
    return module


def make_batch(modalities=MODALITIES, n=12, rng=0) -> SpotBatch:
    torch.manual_seed(rng)
    parts = [{m: torch.randn(n, size + 3 * (m == "adt")) for m in modalities} for size in (9, 4, 5, 9)]
    return SpotBatch(torch.arange(n), *parts)


def make_module(modalities=MODALITIES, *, values=True, rng=1, **options) -> SpaMosaicModule:
    torch.manual_seed(rng)
    sizes = [{m: size + 3 * (m == "adt") for m in modalities} for size in (9, 4, 5)]
    return SpaMosaicModule(sizes[0], sizes[1], sizes[2] if values else None, n_latent=6, n_hidden=16, **options)


# ---- the published network


@pytest.mark.parametrize("modality", MODALITIES)
def test_our_graph_and_hops_give_the_published_features(modality):
    found = propagated_features(modality)
    torch.testing.assert_close(found, stored(f"{modality}/eval/propagated"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_codes_and_decoded_features_are_the_published_ones(modality, mode):
    module = reference_module(dropout=0.0).train(mode == "train")
    with torch.no_grad():
        code = module.codes({modality: propagated_features(modality)})[modality]
        decoded = module.decoders[modality](code)
    for name, found in (("code", code), ("z", F.normalize(code)), ("decoded", decoded)):
        torch.testing.assert_close(found, stored(f"{modality}/{mode}/{name}"), rtol=0, atol=1e-5)
    statistics = module.encoders[modality][2]
    for name in ("running_mean", "running_var"):
        source = f"{modality}/state/bn.{name}" if mode == "eval" else f"{modality}/train/bn.{name}"
        torch.testing.assert_close(getattr(statistics, name), stored(source), rtol=0, atol=1e-6)


def test_training_on_all_spots_takes_the_published_steps():
    module = reference_module(dropout=0.0).train()
    inputs = {modality: propagated_features(modality) for modality in MODALITIES}
    optimizer = torch.optim.Adam(module.parameters(), 0.01, weight_decay=5e-4)
    contrasts, errors = [], []
    for _ in range(3):
        codes = module.codes(inputs)
        bridge = contrastive_loss([code[:20] for code in codes.values()], temperature=0.1)
        error = sum(
            F.mse_loss(module.decoders[modality](code[20:]), stored(f"{modality}/x")[20:])
            for modality, code in codes.items()
        )
        contrasts.append(bridge.item())
        errors.append(error.item())
        optimizer.zero_grad()
        (bridge + error / 2).backward()  # the mean over what has one modality
        optimizer.step()
    np.testing.assert_allclose(contrasts, REFERENCE["epochs/contrast"], rtol=1e-5)
    np.testing.assert_allclose(errors, REFERENCE["epochs/reconstruction"], rtol=1e-5)
    with torch.no_grad():
        for modality, code in module.eval().codes(inputs).items():
            torch.testing.assert_close(F.normalize(code), stored(f"epochs/{modality}/z"), rtol=0, atol=1e-5)


# ---- the code of a spot


def test_a_code_is_the_mean_over_the_modalities_that_measured_the_spot():
    module, batch = make_module().eval(), make_batch()
    codes = module.codes(batch.inputs)
    assert list(codes) == list(MODALITIES)
    torch.testing.assert_close(module(batch.inputs), (codes["rna"] + codes["adt"]) / 2)
    torch.testing.assert_close(module({"adt": batch.inputs["adt"]}), codes["adt"])
    expected = [module.decoders[modality](module(batch.inputs)) for modality in MODALITIES]
    torch.testing.assert_close(module.embed(batch.inputs), torch.cat(expected, 1))
    assert module.embed({"rna": batch.inputs["rna"]}).shape == (12, 4 + 7)


def test_by_default_no_statistics_are_stored_and_one_spot_is_enough():
    module = make_module()
    assert list(module.buffers()) == []
    assert torch.isfinite(module.train()({"rna": torch.ones(1, 9)})).all()
    assert len(list(reference_module().buffers())) == 2 * 3


# ---- what is trained


def naive_error(module, batch, codes, readers, measured):
    terms = [
        (readers[modality](code)[spot, j] - truth[spot, j]) ** 2
        for code in codes
        for modality, truth in measured.items()
        for spot in range(truth.shape[0])
        for j in range(truth.shape[1])
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize("modalities", [("rna",), ("adt",), MODALITIES, ("rna", "adt", "atac")])
def test_every_code_of_a_spot_predicts_what_all_its_modalities_measured(modalities):
    module, batch = make_module(("rna", "adt", "atac")).eval(), make_batch(modalities)
    with torch.no_grad():
        codes = list(module.codes(batch.inputs).values())
        predictors = codes if len(codes) == 1 else [*codes, torch.stack(codes).mean(0)]
        neighbourhoods = naive_error(module, batch, predictors, module.decoders, batch.targets)
        values = naive_error(module, batch, predictors, module.readouts, batch.values)
        torch.testing.assert_close(module.loss(batch), neighbourhoods + values)
        torch.testing.assert_close(module.loss(batch, value_weight=0.3), neighbourhoods + 0.3 * values)
        torch.testing.assert_close(module.loss(batch, value_weight=0.0), neighbourhoods)
        plain = make_module(("rna", "adt", "atac"), values=False).eval()
        plain.load_state_dict({name: value for name, value in module.state_dict().items() if "readouts" not in name})
        torch.testing.assert_close(plain.loss(batch), neighbourhoods)
        assert module.evaluate([batch])["loss"] == pytest.approx(neighbourhoods.item(), rel=1e-5)


def test_contrast_is_added_where_a_spot_has_several_modalities():
    module, batch, one = make_module().eval(), make_batch(), make_batch(("rna",))
    with torch.no_grad():
        contrast = contrastive_loss(list(module.codes(batch.inputs).values()), temperature=0.3)
        both = module.loss(batch, contrast_weight=0.5, temperature=0.3)
        torch.testing.assert_close(both, module.loss(batch) + 0.5 * contrast)
        torch.testing.assert_close(module.loss(one, contrast_weight=0.5), module.loss(one))


def test_the_graph_term_is_its_formula():
    module, batch = make_module().eval(), make_batch(n=5)
    with torch.no_grad():
        own, near = (F.normalize(module(x)) for x in (batch.inputs, batch.neighbours))
        torch.manual_seed(3)
        far = near[torch.randperm(5)]
        terms = [F.logsigmoid(own[i] @ near[i]) + F.logsigmoid(-own[i] @ far[i]) for i in range(5)]
        torch.manual_seed(3)
        found = module.loss(batch, graph_weight=0.25, value_weight=0.0)
        expected = 0.75 * module.loss(batch, value_weight=0.0) - 0.25 * torch.stack(terms).mean()
        torch.testing.assert_close(found, expected)


def test_what_a_spot_did_not_measure_gets_no_gradient():
    module, batch = make_module(), make_batch(("rna",))
    module.loss(batch, graph_weight=0.2, contrast_weight=1.0).backward()
    for name, parameter in module.named_parameters():
        trained = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert trained == (".rna." in name), name


def test_the_mean_over_batches_weighs_all_spots_the_same():
    module = make_module().eval()
    few, many = make_batch(n=3), make_batch(n=30, rng=5)
    expected = (3 * module.evaluate([few])["loss"] + 30 * module.evaluate([many])["loss"]) / 33
    assert module.evaluate([few, many])["loss"] == pytest.approx(expected)
    assert module.evaluate([]) == {"loss": 0.0}


# ---- the key


def test_every_linear_layer_is_keyed_and_the_key_is_part_of_the_answer():
    module, batch = make_module().eval(), make_batch()
    plain = module(batch.inputs)
    keyed(module, "coordinate", generator=torch.Generator().manual_seed(0))
    assert len(keyed_layers(module)) == 2 * (2 + 1 + 1)
    assert not any(isinstance(layer, torch.nn.Linear) for layer in module.modules())
    answers = []
    for rng in (1, 2):
        generator = np.random.default_rng(rng)
        set_key(module, lambda label, shape, generator=generator: generator.uniform(-1, 1, shape))
        answers.append(module(batch.inputs))
    assert not torch.allclose(answers[0], answers[1], atol=1e-2)
    assert not torch.allclose(answers[0], plain, atol=1e-2)
