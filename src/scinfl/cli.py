"""Command line: parses arguments and calls the public API."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scinfl import _names
from scinfl._checks import read_h5ad
from scinfl._cli_federation import add_federation

if TYPE_CHECKING:
    from scinfl.privacy._key_ring import KeyRing
    from scinfl.privacy._revocation import Revocation
    from scinfl.privacy._rotation import WrappedKey

_LIFE_OF_A_KEY = """examples (each site has a folder of its own; send *.pub and letters over any channel):
  mkdir -m 700 ring && scinfl key new ring/first.key --federation lung      at one site; copy it to the others
  scinfl key identity me.identity --site hospital_a                         at every site; send me.identity.pub
  scinfl key rotate ring --identity me.identity --pinned b.pub c.pub --out letters
  scinfl key unwrap ring hospital_b.key.json --identity me.identity --pinned a.pub c.pub
  scinfl key revoke ring hospital_c --identity me.identity --pinned b.pub c.pub --out letters
  scinfl key unwrap ring hospital_c.revocation.json hospital_b.key.json --identity me.identity --pinned a.pub c.pub
  scinfl key wrap ring hospital_d --identity me.identity --pinned b.pub d.pub --out letters
  scinfl key rekey model --old ring/first.key --new ring/version-0002-5ac1f0e2.key --out model_2
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors are one line on standard error."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for noisy in ("fontTools", "matplotlib", "numba", "scvi", "lightning", "pytorch_lightning"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        options.run(options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"scinfl: error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scinfl: stopped", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scinfl", description="Train one model over sites that do not pool cells, locked with a secret key."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    demo = commands.add_parser("demo", help="the whole story on bundled cells: five sites, right, wrong and no key")
    demo.add_argument("--out", type=Path, required=True, help="folder for table, figures and h5ad")
    demo.add_argument("--overwrite", action="store_true", help="replace the files of an earlier demo")
    demo.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    demo.set_defaults(run=_demo)

    keys = commands.add_parser(
        "key",
        help="make, show, rotate and revoke keys; change the key of a model",
        epilog=_LIFE_OF_A_KEY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    key = keys.add_subparsers(required=True, metavar="action")
    new = key.add_parser("new", help="write a new key that only you may read")
    new.add_argument("path", type=Path)
    new.add_argument("--federation", help="name of the federation (a random one by default)")
    new.set_defaults(run=_key_new)
    show = key.add_parser("show", help="show fingerprint, version and federation of a key")
    show.add_argument("path", type=Path)
    show.set_defaults(run=_key_show)
    _add_life_of_a_key(key)

    train = commands.add_parser("train", help="train a classifier over the sites of an h5ad file")
    train.add_argument("data", type=Path, help="h5ad file")
    train.add_argument("--labels", required=True, help="column of obs with the labels")
    train.add_argument("--site", help="column of obs with the site (one pooled site by default)")
    train.add_argument("--group", help="column of obs with patient or donor, kept together in validation")
    train.add_argument("--layer", help="layer to use instead of X")
    train.add_argument("--missing", choices=["error", "zero"], default="error", help="what to do with NaN")
    train.add_argument("--key", type=Path, help="key file; without it the model is not keyed")
    train.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    train.add_argument("--rounds", type=int, default=50, help="rounds (default 50)")
    train.add_argument("--hidden", type=int, default=256, help="hidden units (default 256)")
    train.add_argument("--journal", type=Path, help="folder for checkpoints; resumes the run that it holds")
    train.add_argument("--rng", type=int, default=0, help="seed (default 0)")
    train.add_argument("--device", default="auto")
    train.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    train.add_argument("--dry-run", action="store_true", help="list what would leave each site, and stop")
    train.set_defaults(run=_train)

    predict = commands.add_parser("predict", help="label the cells of an h5ad file with a trained model")
    predict.add_argument("model", type=Path, help="folder of the model")
    predict.add_argument("data", type=Path, help="h5ad file")
    predict.add_argument("--key", type=Path, help="key file of a keyed model")
    predict.add_argument("--out", type=Path, help="h5ad or csv file to write (default: <data>_infl.h5ad)")
    predict.add_argument("--min-confidence", type=float, help="cells below become 'unassigned'")
    predict.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    predict.set_defaults(run=_predict)

    _add_audit(commands)
    add_federation(commands, print)

    info = commands.add_parser("info", help="versions, and what is known about a saved model without its key")
    info.add_argument("model", type=Path, nargs="?", help="folder of a model")
    info.set_defaults(run=_info)
    return parser


def _add_audit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = commands.add_parser(
        "audit",
        help="attack a trained classifier and what its sites send; a report with verdicts",
        epilog="example: scinfl audit run data.h5ad --key lung.key --held-out new.h5ad --out audit.html",
    )
    audit.add_argument("model", type=Path, help="folder of the model")
    audit.add_argument("data", type=Path, help="h5ad file that it was trained on, with labels and sites")
    audit.add_argument("--key", type=Path, help="key file of a keyed model")
    audit.add_argument("--held-out", type=Path, help="h5ad file of cells that took no part; else a twin is trained")
    audit.add_argument("--attributes", nargs="+", default=(), help="columns somebody might want to infer, such as sex")
    audit.add_argument("--quick", action="store_true", help="a tenth of the effort")
    audit.add_argument("--rng", type=int, default=0, help="seed of the attacks (default 0)")
    audit.add_argument("--out", type=Path, default=Path("audit.html"), help="html or md file (default: audit.html)")
    audit.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    audit.set_defaults(run=_audit)


def _add_life_of_a_key(key: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    identity = key.add_parser("identity", help="write a new identity of a site, and what the others pin of it")
    identity.add_argument("path", type=Path, help="secret file; its public half goes to PATH.pub")
    identity.add_argument("--site", required=True, help="name of the site")
    identity.set_defaults(run=_key_identity)

    rotate = key.add_parser("rotate", help="draw the next version of the key, and wrap it for every other site")
    revoke = key.add_parser("revoke", help="rotate without one site, with a signed statement that old keys are refused")
    wrap = key.add_parser("wrap", help="wrap the present key for a site that joins or lost its own")
    unwrap = key.add_parser("unwrap", help="check and take in wrapped keys and revocations from other sites")
    for parser, run in ((rotate, _key_rotate), (revoke, _key_revoke), (wrap, _key_wrap), (unwrap, _key_unwrap)):
        parser.add_argument("ring", type=Path, help="folder with the keys of this site (*.key)")
        parser.add_argument("--identity", type=Path, required=True, help="identity of this site")
        parser.add_argument("--pinned", type=Path, nargs="+", required=True, help="public identities of other sites")
        parser.set_defaults(run=run)
    for parser in (revoke, wrap):
        parser.add_argument("site", help="name of the site")
    for parser in (rotate, revoke, wrap):
        parser.add_argument("--out", type=Path, required=True, help="folder for the letters, one a site")
    unwrap.add_argument("letters", type=Path, nargs="+", help="files that other sites sent")

    rekey = key.add_parser("rekey", help="lock a saved model with another key: the same predictions")
    rekey.add_argument("model", type=Path, help="folder of the model")
    rekey.add_argument("--old", type=Path, required=True, help="key file that the model is locked with")
    rekey.add_argument("--new", type=Path, required=True, help="key file of a later version")
    rekey.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    rekey.add_argument("--force", action="store_true", help="take a key of another federation or an earlier version")
    rekey.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    rekey.set_defaults(run=_key_rekey)


def _demo(options: argparse.Namespace) -> None:
    from scinfl._demo import demo

    print(demo(options.out, rng=options.rng, overwrite=options.overwrite).to_string())
    print("\n175 held-out cells of 10 types, some of them with two cells: a few points of difference are noise.")
    print(f"Table, figures, labelled cells, model and key are in '{options.out}'.")


def _key_new(options: argparse.Namespace) -> None:
    from scinfl.privacy import Key

    key = Key.generate(options.federation)
    key.save(options.path)
    print(f"Wrote a new key to '{options.path}' (mode 0600). Fingerprint {key.fingerprint}.")
    print("Give it to the sites over a channel that the server does not see. It cannot be recovered.")


def _key_show(options: argparse.Namespace) -> None:
    from scinfl.privacy import Key

    key = Key.load(options.path)
    print(f"fingerprint  {key.fingerprint}\nversion      {key.version}\nfederation   {key.federation}")


def _key_identity(options: argparse.Namespace) -> None:
    from scinfl._checks import new_path
    from scinfl.privacy._identity import Identity

    public = new_path(options.path.with_name(f"{options.path.name}.pub"), overwrite=False)
    identity = Identity.generate(options.site)
    identity.save(options.path)
    public.write_text(identity.public.to_text() + "\n")
    print(f"Wrote '{options.path}' (secret, mode 0600) and '{public}' (for the other sites to pin).")
    print(f"Tell them the fingerprint over another channel: {identity.public.fingerprint}")


def _key_rotate(options: argparse.Namespace) -> None:
    ring = _ring(options)
    _send(options.out, ring.rotate().values())
    _show_current(ring)


def _key_revoke(options: argparse.Namespace) -> None:
    ring = _ring(options)
    letters, statement = ring.revoke(options.site)
    _send(options.out, [*letters.values(), statement])
    _show_current(ring)
    print(f"Site '{options.site}' keeps the keys and models that it had. Earlier versions are refused from now on.")


def _key_wrap(options: argparse.Namespace) -> None:
    _send(options.out, [_ring(options).wrap(options.site)])


def _key_unwrap(options: argparse.Namespace) -> None:
    from scinfl.privacy._revocation import read_letters

    ring = _ring(options)
    for letter in read_letters(options.letters):
        ring.accept(letter)
    _show_current(ring)


def _key_rekey(options: argparse.Namespace) -> None:
    import scinfl as si
    from scinfl._checks import new_path
    from scinfl.model._io import read_document

    old, new = (si.privacy.Key.load(path) for path in (options.old, options.new))
    new_path(options.out, overwrite=options.overwrite)
    model = getattr(si.model, read_document(options.model)["class"]).load(options.model)
    model.rekey(old, new, force=options.force)
    model.save(options.out, overwrite=options.overwrite)
    print(f"{model}\nSaved to '{options.out}'. Copies of the old model open with the old key as before.")


def _ring(options: argparse.Namespace) -> KeyRing:
    from scinfl.privacy._identity import Identity, PublicIdentity
    from scinfl.privacy._key_ring import KeyRing

    pinned = [PublicIdentity.from_text(path.read_text()) for path in options.pinned]
    return KeyRing(options.ring, Identity.load(options.identity), pinned)


def _send(folder: Path, letters: Iterable[WrappedKey | Revocation]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for letter in letters:
        path = folder / letter.file_name
        letter.save(path, overwrite=True)
        print(f"Wrote '{path}': {letter}.")


def _show_current(ring: KeyRing) -> None:
    try:
        key = ring.current
    except ValueError as error:
        print(error)
        return
    print(f"The key in '{ring.path}' is version {key.version} now, fingerprint {key.fingerprint}.")


def _train(options: argparse.Namespace) -> None:
    from scinfl._checks import new_path
    from scinfl.model import Classifier
    from scinfl.privacy import Key

    key = Key.load(options.key) if options.key else None
    new_path(options.out, overwrite=options.overwrite)
    adata = read_h5ad(options.data)
    Classifier.setup_anndata(
        adata,
        labels_key=options.labels,
        site_key=options.site,
        layer=options.layer,
        group_key=options.group,
        missing=options.missing,
    )
    model = Classifier(adata, n_hidden=options.hidden, rng=options.rng)
    model.train(
        options.rounds,
        key=key,
        journal=options.journal,
        rng=options.rng,
        device=options.device,
        dry_run=options.dry_run,
    )
    if options.dry_run and model.payload is not None:
        print(f"{model.payload.to_string(index=False)}\nNothing was trained, sent or written to '{options.out}'.")
        return
    model.save(options.out, overwrite=options.overwrite)
    print(f"{model}\nSaved to '{options.out}'.")


def _predict(options: argparse.Namespace) -> None:
    import pandas as pd

    import scinfl as si
    from scinfl._checks import new_path, one_of

    out = options.out or options.data.with_name(f"{options.data.stem}_infl.h5ad")
    one_of("--out (ending)", out.suffix, [".h5ad", ".csv"])
    new_path(out, overwrite=options.overwrite)
    model = si.model.Classifier.load(options.model)
    if options.key:
        model.unlock(si.privacy.Key.load(options.key))
    adata = read_h5ad(options.data)
    si.tl.annotate(adata, model, min_confidence=options.min_confidence)
    temporary = out.with_name(f".{out.name}.part{out.suffix}")
    try:
        if out.suffix == ".csv":
            probabilities = pd.DataFrame(adata.obsm["infl_probability"], adata.obs_names, model.labels)
            adata.obs[["infl_label"]].join(probabilities).to_csv(temporary)
        else:
            si.tl.embed(adata, model)
            adata.write_h5ad(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    print(adata.obs["infl_label"].value_counts().to_string())
    print(f"Wrote '{out}'.")


def _audit(options: argparse.Namespace) -> None:
    import scinfl as si
    from scinfl._checks import new_path

    new_path(options.out, overwrite=options.overwrite)
    adata = read_h5ad(options.data)
    held_out = None if options.held_out is None else read_h5ad(options.held_out)
    model = si.model.Classifier.load(options.model, adata)
    key = None if options.key is None else si.privacy.Key.load(options.key)
    if key is not None:
        model.unlock(key)
    si.tl.audit(
        adata,
        model,
        held_out=held_out,
        key=key,
        attributes=options.attributes,
        quick=options.quick,
        rng=options.rng,
    )
    si.tl.audit_report(adata, options.out, overwrite=options.overwrite)
    for adversary, verdict in adata.uns[_names.UNS]["audit"]["verdicts"].items():
        print(f"{adversary}: {verdict}")
    print(f"Wrote '{options.out}'.")


def _info(options: argparse.Namespace) -> None:
    import torch

    import scinfl as si
    from scinfl.model._io import read_document

    if options.model is None:
        print(f"scinfl {si.__version__}, torch {torch.__version__}, device auto = ", end="")
        print("cuda" if torch.cuda.is_available() else "cpu")
        return
    kind = read_document(options.model)["class"]
    model = getattr(si.model, kind).load(options.model)
    print(model)
    if kind == "Classifier":
        print(f"  labels: {', '.join(model.labels)}")


if __name__ == "__main__":
    sys.exit(main())
