"""The signature of a bundle: Ed25519 over its list of hashes, with keys in PEM, as openssl makes them."""

import base64
from collections.abc import Callable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key, ssh_key_fingerprint

from pipeline.errors import MismatchError, ParamsError

SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"


def read_private(path: Path) -> Ed25519PrivateKey:
    """The key to sign with. Raises ParamsError for anything but a private Ed25519 key without a password."""
    key = load(path, lambda text: load_pem_private_key(text, None))
    if not isinstance(key, Ed25519PrivateKey):
        expected = (
            "a private Ed25519 key in PEM without a password: openssl genpkey -algorithm ed25519 -out signing.pem"
        )
        raise ParamsError(f"--key: {path}: expected {expected}")
    return key


def read_public(path: Path) -> Ed25519PublicKey:
    """The key to check with. Raises ParamsError for anything but a public Ed25519 key."""
    key = load(path, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        expected = (
            "the signer's public Ed25519 key in PEM, which the signer gets by: openssl pkey -in signing.pem -pubout"
        )
        raise ParamsError(f"--key: {path}: expected {expected}")
    return key


def load(path: Path, read: Callable[[bytes], object]) -> object:
    """The key in `path`, or None if `read` cannot read it."""
    try:
        return read(path.read_bytes())
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a password
        return None


def check_signature(folder: Path, signer: Ed25519PublicKey | None) -> str:
    """What is known of the signature in `folder`. Raises MismatchError unless it is by `signer`, if that is given."""
    path = folder / SIGNATURE
    if signer is None:
        return (
            "signed, not checked: by whom, --key shows" if path.exists() else "not signed: anybody can have written it"
        )
    if not path.exists():
        raise MismatchError(f"not signed: {SIGNATURE} is missing")
    name = base64.b64encode(ssh_key_fingerprint(signer, SHA256())).decode().rstrip("=")  # as `ssh-keygen -l` prints it
    try:
        signer.verify(path.read_bytes(), (folder / SUMS).read_bytes())
    except InvalidSignature:
        raise MismatchError(f"{SIGNATURE} is not by the key SHA256:{name}, or not of this {SUMS}") from None
    return f"signed with the key SHA256:{name}"
