"""Commands for keys: parse arguments and call ``scinfl.privacy``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scinfl.cli._models import load_model
from scinfl.cli._text import Commands, command

if TYPE_CHECKING:
    from scinfl.privacy import KeyRing, Revocation, WrappedKey

_LIFE_OF_A_KEY = """examples (each site has a folder of its own; send *.pub and *.json over any channel):
  mkdir -m 700 ring && scinfl key new ring/first.key --federation lung      at one site; copy it to the others
  scinfl key identity me.identity --site hospital_a                         at every site; send me.identity.pub
  scinfl key rotate ring --identity me.identity --pinned b.pub c.pub --out outbox
  scinfl key unwrap ring hospital_b.key.json --identity me.identity --pinned a.pub c.pub
  scinfl key revoke ring hospital_c --identity me.identity --pinned b.pub c.pub --out outbox
  scinfl key unwrap ring hospital_c.revocation.json hospital_b.key.json --identity me.identity --pinned a.pub c.pub
  scinfl key wrap ring hospital_d --identity me.identity --pinned b.pub d.pub --out outbox
  scinfl key rekey model --old ring/first.key --new ring/version-0002-5ac1f0e2.key --out model_2
"""

Report = Callable[[str], None]


def add_keys(commands: Commands, report: Report) -> None:
    """Add the commands."""
    keys = commands.add_parser(
        "key",
        help="make, show, rotate and revoke keys; change the key of a model",
        epilog=_LIFE_OF_A_KEY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = keys.add_subparsers(required=True, metavar="action")
    new = command(
        actions,
        "new",
        "write a new key that only you may read",
        "scinfl key new lung.key --federation lung",
    )
    new.add_argument("path", type=Path, help="file to write; an existing one is never replaced")
    new.add_argument("--federation", help="name of the federation (a random one by default)")
    new.set_defaults(run=_key_new)
    show = command(
        actions, "show", "show fingerprint, version and federation of a key, not the secret", "scinfl key show lung.key"
    )
    show.add_argument("path", type=Path, help="key file")
    show.set_defaults(run=_key_show)
    identity = command(
        actions,
        "identity",
        "write a new identity of a site, and what the others pin of it",
        "scinfl key identity me.identity --site hospital_a",
    )
    identity.add_argument("path", type=Path, help="secret file; its public half goes to PATH.pub")
    identity.add_argument("--site", required=True, help="name of the site")
    identity.set_defaults(run=_key_identity)
    _add_versions(actions)
    _add_rekey(actions)
    for parser in actions.choices.values():
        parser.set_defaults(report=report)


def _add_versions(actions: Commands) -> None:
    """Later versions of a key, for those who stay."""
    who = "--identity me.identity --pinned b.pub c.pub"
    rotate = command(
        actions,
        "rotate",
        "draw the next version of the key, and wrap it for every other site",
        f"scinfl key rotate ring {who} --out outbox",
    )
    revoke = command(
        actions,
        "revoke",
        "rotate without one site, with a signed statement that old keys are refused",
        f"scinfl key revoke ring hospital_c {who} --out outbox",
    )
    wrap = command(
        actions,
        "wrap",
        "wrap the present key for a site that joins or lost its own",
        f"scinfl key wrap ring hospital_b {who} --out outbox",
    )
    unwrap = command(
        actions,
        "unwrap",
        "check and take in wrapped keys and revocations from other sites",
        f"scinfl key unwrap ring hospital_b.key.json {who}",
    )
    for parser, run in ((rotate, _key_rotate), (revoke, _key_revoke), (wrap, _key_wrap), (unwrap, _key_unwrap)):
        parser.add_argument("ring", type=Path, help="folder with the keys of this site (*.key)")
        parser.add_argument("--identity", type=Path, required=True, help="identity of this site")
        parser.add_argument("--pinned", type=Path, nargs="+", required=True, help="public identities of other sites")
        parser.set_defaults(run=run)
    for parser in (revoke, wrap):
        parser.add_argument("site", help="name of the site")
    for parser in (rotate, revoke, wrap):
        parser.add_argument("--out", type=Path, required=True, help="folder for the files to send, one per site")
    unwrap.add_argument("files", type=Path, nargs="+", help="files that other sites sent")


def _add_rekey(actions: Commands) -> None:
    rekey = command(
        actions,
        "rekey",
        "lock a saved model with another key: the same predictions",
        "scinfl key rekey run --old first.key --new second.key --out run_2",
    )
    rekey.add_argument("model", type=Path, help="folder of the model")
    rekey.add_argument("--old", type=Path, required=True, help="key file that the model is locked with")
    rekey.add_argument("--new", type=Path, required=True, help="key file of a later version")
    rekey.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    rekey.add_argument("--force", action="store_true", help="take a key of another federation or an earlier version")
    rekey.add_argument("--overwrite", action="store_true", help="replace a model that is there")
    rekey.set_defaults(run=_key_rekey)


def _key_new(options: argparse.Namespace) -> None:
    from scinfl.privacy import Key

    key = Key.generate(options.federation)
    key.save(options.path)
    options.report(f"Wrote a new key to '{options.path}' (mode 0600). Fingerprint {key.fingerprint}.")
    options.report("Give it to the sites over a channel that the server does not see. It cannot be recovered.")


def _key_show(options: argparse.Namespace) -> None:
    from scinfl.privacy import Key

    key = Key.load(options.path)
    options.report(f"fingerprint  {key.fingerprint}\nversion      {key.version}\nfederation   {key.federation}")


def _key_identity(options: argparse.Namespace) -> None:
    from scinfl._checks import new_path
    from scinfl.privacy import Identity

    public = new_path(options.path.with_name(f"{options.path.name}.pub"), overwrite=False)
    identity = Identity.generate(options.site)
    identity.save(options.path)
    public.write_text(identity.public.to_text() + "\n")
    options.report(f"Wrote '{options.path}' (secret, mode 0600) and '{public}' (for the other sites to pin).")
    options.report(f"Give them the fingerprint over another channel: {identity.public.fingerprint}")


def _key_rotate(options: argparse.Namespace) -> None:
    ring = _ring(options)
    _send(options, ring.rotate().values())
    _show_current(options, ring)


def _key_revoke(options: argparse.Namespace) -> None:
    ring = _ring(options)
    wrapped, statement = ring.revoke(options.site)
    _send(options, [*wrapped.values(), statement])
    _show_current(options, ring)
    options.report(
        f"Site '{options.site}' keeps the keys and models that it had. Earlier versions are refused from now on."
    )


def _key_wrap(options: argparse.Namespace) -> None:
    _send(options, [_ring(options).wrap(options.site)])


def _key_unwrap(options: argparse.Namespace) -> None:
    from scinfl.privacy.keys import read_documents

    ring = _ring(options)
    for document in read_documents(options.files):
        ring.accept(document)
    _show_current(options, ring)


def _key_rekey(options: argparse.Namespace) -> None:
    from scinfl._checks import new_path
    from scinfl.privacy import Key

    old, new = (Key.load(path) for path in (options.old, options.new))
    new_path(options.out, overwrite=options.overwrite)
    model = load_model(options.model)
    model.rekey(old, new, force=options.force)
    model.save(options.out, overwrite=options.overwrite)
    options.report(f"{model}\nSaved to '{options.out}'. Copies of the old model open with the old key as before.")


def _ring(options: argparse.Namespace) -> KeyRing:
    from scinfl.privacy import Identity, KeyRing, PublicIdentity

    pinned = [PublicIdentity.from_text(path.read_text()) for path in options.pinned]
    return KeyRing(options.ring, Identity.load(options.identity), pinned)


def _send(options: argparse.Namespace, documents: Iterable[WrappedKey | Revocation]) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    for document in documents:
        path = options.out / document.file_name
        document.save(path, overwrite=True)
        options.report(f"Wrote '{path}': {document}.")


def _show_current(options: argparse.Namespace, ring: KeyRing) -> None:
    try:
        key = ring.current
    except ValueError as error:
        options.report(str(error))
        return
    options.report(f"The key in '{ring.path}' is version {key.version} now, fingerprint {key.fingerprint}.")
