"""What sites compare before the first round, in a form that the server cannot read."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature

from scinfl import __version__
from scinfl._checks import first_of
from scinfl._errors import TamperedSumError
from scinfl.flower.protocol._limits import read_json
from scinfl.flower.setup._job import Job
from scinfl.flower.tasks._task import Task
from scinfl.privacy import Key, PublicIdentity, Seal, agree_version
from scinfl.privacy.aggregation import RunContext
from scinfl.privacy.keys import joined

_MOST_FACTS = 100_000  # labels, perturbations or features of a site
_CURES = {
    "job": "Send it the present 'job.toml'.",
    "scinfl": "Install the same version at all sites.",
    "identities": (
        "Bring the folder 'identities' of these kits to what the operator handed out, and compare fingerprints by "
        "telephone."
    ),
    "features": (
        'Write `features = "intersection"` in the job, or bring the files of all sites to the same features with '
        "`scinfl.pp.align_genes`."
    ),
    "order of features": (
        'Write `features = "intersection"` in the job, or bring the files of all sites to the same order of features '
        "with `scinfl.pp.align_genes`."
    ),
    "scale of values": (
        "Some have raw counts, others do not: run `sc.pp.normalize_total` and `sc.pp.log1p` at the sites that have "
        "counts."
    ),
}


def run_context(key: Key, job: Job, run: str, identities: str, facts: str = "") -> RunContext:
    """What a site believes of a run."""
    return RunContext(key.federation, key.version, run, job.digest, facts, identities)


def site_checks(task: Task, key: Key, job: Job, run: str, *, identities: str) -> dict[str, str]:
    """Short proofs of what must be the same at all sites: open where it is public, else keyed hashes."""
    names = task.features if job.features == "same" else [job.features]
    return {
        "job": job.digest,
        "scinfl": __version__,
        "identities": identities,
        "features": _keyed_hash(key, run, "features", sorted(names)),
        "order of features": _keyed_hash(key, run, "order of features", names),
        "scale of values": _keyed_hash(key, run, "scale", task.scale),
    }


class SitesDifferError(ValueError):
    """Sites differ in what must be the same: in what, by the sites that have to act.

    Parameters
    ----------
    problems
        Sites that differ from the others, and in what, with the cure.
    """

    def __init__(self, problems: Sequence[tuple[Sequence[str], str]]) -> None:
        self._problems = problems
        super().__init__(self._text([problem for _, problem in problems]))

    def reason_for(self, site: str | None) -> str:
        """What a site must know of it: what it has to do itself, or else who has to act, and no more."""
        if own := [problem for sites, problem in self._problems if site in sites]:
            return self._text(own)
        others = sorted({other for sites, _ in self._problems for other in sites})
        return (
            f"Expected the same at all sites, found that {first_of(others)} must act before the run can begin. Nothing "
            "is to be done at this site: start it again when the operator says so."
        )

    @staticmethod
    def _text(problems: Sequence[str]) -> str:
        return "Expected the same at all sites, found that the " + " The ".join(problems)


def compare(checks: Mapping[str, Mapping[str, str]], keys: Mapping[str, tuple[int, str]]) -> None:
    """Refuse sites that differ, at the server; names them and the cure.

    Raises
    ------
    ValueError
        If a site differs from the others.
    """
    agree_version({site: {version: fingerprint} for site, (version, fingerprint) in keys.items()})
    problems: list[tuple[list[str], str]] = []
    for name, cure in _CURES.items():
        found = {site: own.get(name, "") for site, own in checks.items()}
        if len(set(found.values())) == 1:
            continue
        usual = Counter(found[site] for site in sorted(found)).most_common(1)[0][0]
        odd = [site for site in sorted(found) if found[site] != usual]
        who = first_of([f"'{site}'" for site in odd])
        problems.append((odd, f"{name} of site {who} differ{'s' if len(odd) == 1 else ''} from the others. {cure}"))
        if name == "features":
            break  # the order differs too then
    if problems:
        raise SitesDifferError(problems)


def seal_facts(facts: Mapping[str, Any], key: Key, site: str, job: Job, run: str, *, identities: str) -> bytes:
    """What one site has, for the eyes of the other sites, in this run."""
    context = run_context(key, job, run, identities).digest.hex()
    return Seal(key).seal(json.dumps(facts).encode(), what="facts", site=site, context=context)


def open_facts(
    sealed: Mapping[str, bytes], key: Key, job: Job, run: str, *, identities: str
) -> dict[str, dict[str, Any]]:
    """What all sites have, at a site.

    Raises
    ------
    TamperedSumError
        If there are facts of fewer than ``min_sites`` sites, or of sites that the job does not name.
    ValueError
        If facts belong to another site, job, run or key.
    """
    if strange := sorted(set(sealed) - set(job.sites)):
        msg = f"Expected facts of the sites of the job, found some of {first_of(strange)}. Do not trust this server."
        raise TamperedSumError(msg)
    if len(sealed) < job.min_sites:
        msg = (
            f"Expected facts of at least {job.min_sites} sites, as `min_sites` of the job asks for, found those of "
            f"{first_of(sorted(sealed)) or 'none'}: each site would train a model of its own labels. Nothing was sent; "
            "do not trust this server."
        )
        raise TamperedSumError(msg)
    seal, context = Seal(key), run_context(key, job, run, identities).digest.hex()
    opened = {site: seal.unseal(content, what="facts", site=site, context=context) for site, content in sealed.items()}
    return {site: _read_facts(site, content) for site, content in opened.items()}


def _read_facts(site: str, content: bytes) -> dict[str, Any]:
    try:
        facts = read_json(content.decode())
        json.dumps(facts, ensure_ascii=False).encode()  # half characters would fail where names are hashed
    except ValueError as error:
        msg = f"Expected facts of site '{site}', found something else ({error}). Let the operator leave that site out."
        raise ValueError(msg) from error
    return facts


def check_facts(facts: Mapping[str, Mapping[str, Any]], own: Mapping[str, Any]) -> None:
    """Refuse facts that do not have the form of this site's own; names the site.

    Raises
    ------
    ValueError
        If there are such.
    """
    for site, theirs in facts.items():
        if not isinstance(theirs, Mapping) or theirs.keys() != own.keys():
            odd = f"others: {first_of(sorted(map(str, theirs)))}" if isinstance(theirs, Mapping) else "none"
            what = first_of(sorted(own))
        elif wrong := sorted(name for name in own if not _is_like(theirs[name], own[name])):
            odd, what = f"something else as {first_of(wrong)}", "lists of names"
        else:
            continue
        msg = f"Expected facts of site '{site}' ({what}), found {odd}. Let the operator leave that site out."
        raise ValueError(msg)


def _is_like(theirs: object, own: object) -> bool:
    """Whether content of json has the types of other content, and is not immensely larger."""
    if isinstance(own, list) and isinstance(theirs, list):
        first = own[0] if own else next(iter(theirs), None)
        return len(theirs) <= _MOST_FACTS and (
            not isinstance(first, str) or all(isinstance(one, str) for one in theirs)
        )
    return type(theirs) is type(own)


def hello_content(hello: Mapping[str, Any]) -> bytes:
    """What a site signs of its greeting."""
    return joined("scinfl hello", json.dumps(dict(hello), sort_keys=True))


def check_hello(identity: PublicIdentity, signature: bytes, hello: Mapping[str, Any]) -> None:
    """Refuse a greeting that the site did not sign."""
    try:
        identity.verify(signature, hello_content(hello))
    except InvalidSignature as error:
        raise ValueError(str(error)) from None


def agreement_hash(digest: str, key: Key, run: str) -> str:
    """Keyed hash of what sites agreed on, which the server compares."""
    return _keyed_hash(key, run, "agreement", [digest])


def _keyed_hash(key: Key, run: str, what: str, names: Sequence[str]) -> str:
    content = json.dumps([run, *names]).encode()
    return hmac.new(key.derive("preflight", what), content, hashlib.sha256).hexdigest()
