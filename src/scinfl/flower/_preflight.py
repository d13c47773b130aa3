"""What sites compare before the first round, in a form that the server cannot read."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from cryptography.exceptions import InvalidSignature

from scinfl import __version__
from scinfl._checks import first_of, looks_like_counts
from scinfl.flower._job import Job, SiteSettings
from scinfl.privacy import Key, PublicIdentity, Seal, agree_version
from scinfl.privacy._derivation import joined

_CURES = {
    "job": "Send it the present 'job.toml'.",
    "scinfl": "Install the same version at all sites.",
    "features": "Bring all sites to the same features with `scinfl.pp.align_genes`.",
    "order of features": "Bring all sites to the same order of features with `scinfl.pp.align_genes`.",
    "scale of values": (
        "Some have raw counts, others do not: run `sc.pp.normalize_total` and `sc.pp.log1p` at the sites that have "
        "counts."
    ),
}


def site_checks(adata: AnnData, key: Key, job: Job, settings: SiteSettings, run: str) -> dict[str, str]:
    """Short proofs of what must be the same at all sites: open where it is public, else keyed hashes.

    Parameters
    ----------
    adata
        Data of the site.
    key
        Secret of the sites.
    job, settings
        What is trained, and how the site reads its data.
    run
        Name of the run, so that hashes of two runs cannot be compared.
    """
    names = [str(name) for name in adata.var_names]
    layer = settings.setup_options(job).get("layer")
    values = adata.X if layer is None else adata.layers[layer]
    return {
        "job": job.digest,
        "scinfl": __version__,
        "features": _keyed_hash(key, run, "features", sorted(names)),
        "order of features": _keyed_hash(key, run, "order of features", names),
        "scale of values": _keyed_hash(key, run, "scale", ["counts" if looks_like_counts(values) else "other"]),
    }


def compare(checks: Mapping[str, Mapping[str, str]], keys: Mapping[str, tuple[int, str]]) -> None:
    """Refuse sites that differ, at the server; names them and the cure.

    Parameters
    ----------
    checks
        What :func:`site_checks` gave, by site.
    keys
        Version and fingerprint of each site's key: public.

    Raises
    ------
    ValueError
        If a site differs from the others.
    """
    agree_version({site: {version: fingerprint} for site, (version, fingerprint) in keys.items()})
    problems = []
    for name, cure in _CURES.items():
        found = {site: own.get(name, "") for site, own in checks.items()}
        if len(set(found.values())) == 1:
            continue
        usual = Counter(found[site] for site in sorted(found)).most_common(1)[0][0]
        odd = [f"'{site}'" for site in sorted(found) if found[site] != usual]
        problems.append(f"{name} of site {first_of(odd)} differ{'s' if len(odd) == 1 else ''} from the others. {cure}")
        if name == "features":
            break  # the order differs too then
    if problems:
        msg = "Expected the same at all sites, found that the " + " The ".join(problems)
        raise ValueError(msg)


def seal_facts(labels: Sequence[str], key: Key, site: str, job: Job, run: str) -> bytes:
    """Labels of one site, for the eyes of the other sites."""
    content = json.dumps({"labels": sorted(map(str, labels))}).encode()
    return Seal(key).seal(content, what="facts", site=site, job=job.digest, run=run)


def agree_labels(sealed: Mapping[str, bytes], key: Key, job: Job, run: str) -> list[str]:
    """All labels of all sites, in order, at a site.

    Parameters
    ----------
    sealed
        What :func:`seal_facts` gave, by site.
    key, job, run
        See :func:`site_checks`.

    Raises
    ------
    ValueError
        If facts belong to another site, job, run or key.
    """
    seal = Seal(key)
    labels: set[str] = set()
    for site, content in sealed.items():
        facts = json.loads(seal.unseal(content, what="facts", site=site, job=job.digest, run=run))
        labels |= set(map(str, facts["labels"]))
    return sorted(labels)


def hello_content(hello: Mapping[str, Any]) -> bytes:
    """What a site signs of its greeting."""
    return joined("scinfl hello", json.dumps(dict(hello), sort_keys=True))


def check_hello(identity: PublicIdentity, signature: bytes, hello: Mapping[str, Any]) -> None:
    """Refuse a greeting that the site did not sign."""
    try:
        identity.verify(signature, hello_content(hello))
    except InvalidSignature as error:
        raise ValueError(str(error)) from None


def labels_hash(labels: Sequence[str], key: Key, run: str) -> str:
    """Keyed hash of the agreed labels, which the server compares."""
    return _keyed_hash(key, run, "labels", list(labels))


def check_site_data(adata: AnnData, settings: SiteSettings, job: Job) -> list[str]:
    """Refuse data that this site should not take part with; returns its labels.

    Raises
    ------
    KeyError
        If a column or layer does not exist.
    ValueError
        If a label has too few cells.
    """
    options = settings.setup_options(job)
    column = options.get("labels_key")
    if column is None or column not in adata.obs:
        msg = (
            f"Expected the labels in a column of obs, found no {column!r}. Columns are "
            f"{first_of(list(map(str, adata.obs.columns)), 20)}: name one as `labels_key` in site.toml."
        )
        raise KeyError(msg)
    layer = options.get("layer")
    if layer is not None and layer not in adata.layers:
        msg = f"Expected layer {layer!r}, found {list(adata.layers)}. Name one as `layer` in site.toml."
        raise KeyError(msg)
    unlabelled = options.get("unlabeled_category")
    counts = adata.obs[column].dropna().astype(str).value_counts()
    counts = counts[counts.index != str(unlabelled)]
    few = counts[counts < settings.min_cells_per_label]
    if len(few):
        msg = (
            f"Expected at least {settings.min_cells_per_label} cells of each label, as site.toml asks for, found fewer "
            f"of {len(few)} labels: {first_of(list(few.index))}. Merge or drop them, or lower `min_cells_per_label`."
        )
        raise ValueError(msg)
    return sorted(counts.index)


def registry_of(adata: AnnData, labels: Sequence[str], model: Any, setup_options: Mapping[str, Any]) -> dict[str, Any]:
    """Set-up of the agreed labels and features, for data that hold a part of the labels."""
    options = dict(setup_options)
    every = [*labels, *[str(options[name]) for name in ("unlabeled_category",) if options.get(name) is not None]]
    rows = np.repeat(np.array(every, dtype=object), 3)
    obs = pd.DataFrame({options["labels_key"]: pd.Categorical(rows, categories=every)})
    obs.index = obs.index.astype(str)
    if options.get("group_key") is not None:
        obs[options["group_key"]] = "none"
    nothing = np.zeros((len(rows), adata.n_vars), np.float32)
    layers = {} if options.get("layer") is None else {options["layer"]: nothing}
    agreed = AnnData(nothing, obs, pd.DataFrame(index=adata.var_names.astype(str)), layers=layers)
    model.setup_anndata(agreed, **options)
    return model(agreed, key_scheme=None).registry_


def _keyed_hash(key: Key, run: str, what: str, names: Sequence[str]) -> str:
    content = json.dumps([run, *names]).encode()
    return hmac.new(key.derive("preflight", what), content, hashlib.sha256).hexdigest()
