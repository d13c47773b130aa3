"""The folders that an operator and the sites get: certificates, keys, identities, a job and instructions."""

from __future__ import annotations

import ipaddress
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scinfl._checks import new_path
from scinfl.flower.setup._job import JOB, SITE_SETTINGS, Job, check_names
from scinfl.flower.setup._templates import job_template, operator_guide, site_guide, site_template
from scinfl.privacy import Identity, PublicIdentity

CA = "ca.pem"
SERVER_CERTIFICATE = "server.pem"
SERVER_KEY = "server.key"
LINK_KEY = "link.key"
IDENTITY = "identity.json"
IDENTITIES = "identities"
SITES = "sites"
ADDRESS = "address"
_DAYS = 825  # the longest that most TLS stacks accept


def make_kit(
    path: str | Path, sites: Sequence[str], *, address: str = "127.0.0.1:9092", job: str | Path | None = None
) -> None:
    """Write one folder for the operator, one for each site, and the certificate authority that vouches for the server.

    Private keys are readable by their owner only. The key of the federation is in none of the folders: a site makes it
    with ``scinfl key new`` and gives it to the other sites, never to the operator.

    Parameters
    ----------
    path
        Folder to write; appears whole or not at all.
    sites
        Names of the sites.
    address
        Host and port at which the sites reach the server.
    job
        File of a job; a template by default.

    Raises
    ------
    ValueError
        If names, address or job cannot be used.
    FileExistsError
        If there is something at the path.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> kit = tempfile.mkdtemp() + "/kit"
    >>> si.flower.make_kit(kit, ["north", "south", "west"])
    >>> sorted(folder.name for folder in Path(kit).iterdir())
    ['README.md', 'authority', 'server', 'site_north', 'site_south', 'site_west']
    """
    path = new_path(path, overwrite=False)
    sites = _checked_names(sites)
    host, port = split_address(address)
    text = job_template(sites) if job is None else Path(job).read_text()
    Job.parse(text).check_sites(sites)
    if job is not None:
        Job.parse(text).check_options()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        _write_kit(temporary, sites, host, port, text)
        temporary.chmod(0o755)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_kit(path: Path, sites: Sequence[str], host: str, port: int, job: str) -> None:
    authority = ec.generate_private_key(ec.SECP384R1())
    root = _certificate("scinfl federation", authority, authority)
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = _certificate("scinfl server", key, authority, hosts=[host, "localhost", "127.0.0.1"])
    server = path / "server"
    for folder in (path / "authority", server, server / SITES, server / IDENTITIES):
        folder.mkdir(mode=0o700)
    write_private(path / "authority" / "ca.key", _pem(authority))
    write_private(server / SERVER_KEY, _pem(key))
    for folder in (path / "authority", server):
        (folder / CA).write_bytes(_public(root))
    (server / SERVER_CERTIFICATE).write_bytes(_public(certificate))
    (server / ADDRESS).write_text(f"{host}:{port}\n")
    (server / JOB).write_text(job)
    identities = {site: Identity.generate(site) for site in sites}
    for identity in identities.values():
        (server / IDENTITIES / f"{identity.site}.json").write_text(identity.public.to_text() + "\n")
    for site, identity in identities.items():
        folder = path / f"site_{site}"
        folder.mkdir(mode=0o700)
        _write_site(folder, server, identity)
    (path / "README.md").write_text(operator_guide(sites))


def _write_site(folder: Path, server: Path, identity: Identity) -> None:
    """Fill the folder of a site, and let the server know its public keys."""
    site, link = identity.site, ec.generate_private_key(ec.SECP384R1())
    write_private(folder / LINK_KEY, _openssh(link))
    public = link.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (server / SITES / f"{site}.pub").write_bytes(public + b"\n")
    (server / IDENTITIES / f"{site}.json").write_text(identity.public.to_text() + "\n")
    for name in (CA, ADDRESS, JOB):
        (folder / name).write_bytes((server / name).read_bytes())
    (folder / SITE_SETTINGS).write_text(site_template(site))
    identity.save(folder / IDENTITY)
    (folder / "README.md").write_text(site_guide(site))
    shutil.copytree(server / IDENTITIES, folder / IDENTITIES)


def add_site(kit: str | Path, site: str) -> Path:
    """Write the folder of a further site, beside that of the operator; certificates and other sites stay as they are.

    The job must then name the site, and be sent to all sites. Every other site also puts the public identity of the new
    one (``identities/SITE.json``) into the same folder of its own.

    Parameters
    ----------
    kit
        Folder of the operator.
    site
        Name of the new site.

    Returns
    -------
    Folder of the site.

    Raises
    ------
    FileNotFoundError
        If there is no kit.
    FileExistsError
        If there is such a site already, or there was one.
    ValueError
        If the name cannot be used.

    Examples
    --------
    >>> import tempfile, scinfl as si
    >>> kit = tempfile.mkdtemp() + "/kit"
    >>> si.flower.make_kit(kit, ["north", "south", "west"])
    >>> si.flower.add_site(f"{kit}/server", "east").name
    'site_east'
    """
    server = Path(kit)
    if not (server / SITES).is_dir():
        msg = f"Expected the folder of the operator, found none at '{server}'. Name the folder 'server' of the kit."
        raise FileNotFoundError(msg)
    check_names([site])
    path = server.parent / f"site_{site}"
    if path.exists() or list((server / SITES).glob(f"{site}.*")):
        msg = f"Expected a name that no site has or had, found '{site}'. Choose another."
        raise FileExistsError(msg)
    temporary = Path(tempfile.mkdtemp(dir=server.parent, prefix=f".{path.name}."))
    try:
        _write_site(temporary, server, Identity.generate(site))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def pinned_identities(kit: Path) -> dict[str, PublicIdentity]:
    """Public identities of all sites, as stored in a folder of the kit.

    Raises
    ------
    ValueError
        If a file holds the identity of another site than it is named for.
    """
    found = {}
    for path in sorted((kit / IDENTITIES).glob("*.json")):
        public = PublicIdentity.from_text(path.read_text())
        if path.name != f"{public.site}.json":
            msg = (
                f"Expected '{path}' to hold the identity of site '{path.stem}', found that of '{public.site}', which "
                "it would replace. Ask that site, by telephone, for its fingerprint."
            )
            raise ValueError(msg)
        found[public.site] = public
    return found


def split_address(address: str) -> tuple[str, int]:
    """Host and port."""
    host, _, port = address.strip().rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        msg = f"Expected `address` as host:port, found {address!r}. For example 'federation.example.org:9092'."
        raise ValueError(msg)
    return host, int(port)


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner may read."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_bytes(content)


def _checked_names(sites: Sequence[str]) -> list[str]:
    names = sorted(sites)
    if len(set(names)) < len(names) or len(names) < 2:
        msg = f"Expected at least 2 sites with different names, found {names}. Write `--sites north,south,west`."
        raise ValueError(msg)
    check_names(names)
    return names


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: ec.EllipticCurvePrivateKey, hosts: Sequence[str] = ()
) -> x509.Certificate:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "scinfl federation")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=not hosts, path_length=None if hosts else 0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .add_extension(_usage(authority=not hosts), critical=True)
    )
    if hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(issuer, hashes.SHA384())


def _usage(*, authority: bool) -> x509.KeyUsage:
    off = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"], False
    )
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, decipher_only=False, **off
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def _public(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
