"""Signatures of releases, in the files of minisign (Ed25519), which can make and check them too.

``release.json.minisig`` lies beside the manifest and covers it, and so every object. Who signs names a secret key in
MLITES_SIGNING_KEY (password in MLITES_SIGNING_PASSWORD); who serves names public keys in MLITES_TRUSTED_KEYS, and then
only what one of them has signed is loaded.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import minisign

from mlites.errors import InputError
from mlites.files import write_atomically
from mlites.storage import MissingObject, Store

SUFFIX = ".minisig"


def make_keys(secret: Path, public: Path) -> None:
    """Write a new pair of keys; the secret one is for its owner alone and has no password.

    Raises:
        InputError: one of the files exists.
    """
    for path in (secret, public):
        if path.exists():
            raise InputError(f"{path} exists; a key is not overwritten, name another file")
    pair = minisign.KeyPair.generate()
    write_atomically(secret, bytes(pair.secret_key), mode=0o600)
    write_atomically(public, bytes(pair.public_key))


def sign(store: Store, key: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Sign an object, if MLITES_SIGNING_KEY names a key; whether it does.

    Raises:
        InputError: the key cannot be read, or its password is wrong.
    """
    name = environment.get("MLITES_SIGNING_KEY")
    if not name:
        return False
    try:
        with minisign.SecretKey.from_file(name) as secret:
            if secret.is_encrypted():
                secret.decrypt(environment.get("MLITES_SIGNING_PASSWORD", ""))
            signature = secret.sign(store.get(key), trusted_comment=key[-200:])
    except OSError as error:
        raise InputError(f"MLITES_SIGNING_KEY: cannot read {name}: {error.strerror}") from None
    except minisign.Error as error:
        raise InputError(
            f"MLITES_SIGNING_KEY: {name} cannot sign ({error}); is MLITES_SIGNING_PASSWORD its password?"
        ) from None
    store.put(f"{key}{SUFFIX}", bytes(signature))
    return True


def check_signed(store: Store, key: str, content: bytes, environment: Mapping[str, str] = os.environ) -> str | None:
    """Make sure that a trusted key has signed the content; the file of that key, None where no key is trusted.

    Args:
        store: holds the signature beside the object.
        key: of the object.
        content: its bytes.
        environment: where MLITES_TRUSTED_KEYS names a file, or a folder of .pub files.

    Raises:
        InputError: no signature, or none that a trusted key made of these bytes.
    """
    trusted = _trusted_keys(environment)
    if not trusted:
        return None
    try:
        signature = minisign.Signature.from_bytes(store.get(f"{key}{SUFFIX}"))
    except MissingObject:
        raise InputError(f"{store.uri}/{key} is not signed, and MLITES_TRUSTED_KEYS asks for it; sign it") from None
    except (minisign.Error, ValueError) as error:
        raise InputError(f"{store.uri}/{key}{SUFFIX} is not a signature: {error}; sign the release again") from None
    for path, public in trusted.items():
        try:
            public.verify(content, signature)
        except minisign.Error:
            continue
        return path
    raise InputError(
        f"{store.uri}/{key}: its signature is wrong: none of the keys in {environment['MLITES_TRUSTED_KEYS']} made it"
    )


def _trusted_keys(environment: Mapping[str, str]) -> dict[str, minisign.PublicKey]:
    name = environment.get("MLITES_TRUSTED_KEYS")
    if not name:
        return {}
    place = Path(name)
    files = sorted(place.glob("*.pub")) if place.is_dir() else [place]
    if not files:
        raise InputError(f"MLITES_TRUSTED_KEYS: no .pub file in {place}")
    keys = {}
    for path in files:
        try:
            keys[str(path)] = minisign.PublicKey.from_file(path)
        except OSError as error:
            raise InputError(f"MLITES_TRUSTED_KEYS: cannot read {path}: {error.strerror}") from None
        except (minisign.Error, ValueError) as error:
            raise InputError(f"MLITES_TRUSTED_KEYS: {path} is not a minisign public key: {error}") from None
    return keys
