#!/usr/bin/env python3
"""Opens every golden envelope with nothing but docs/format.md and python3-cryptography.

Shares no code with Keyturn on purpose: it shows that the format page is enough to get the data back. It starts from the
root key, as a recovery would. Usage: read_envelopes.py GOLDEN_FILE. Exits 1 on the first difference.
"""

import base64
import hashlib
import hmac
import json
import sys
import uuid

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

ALGORITHMS = {"aes-256-gcm": 1, "xaes-256-gcm": 2}
NONCE_BYTES = {1: 12, 2: 24}


class Difference(Exception):
    """What was read is not what the golden file or the format page says."""


def demand(is_true, what):
    if not is_true:
        raise Difference(what)


def label(name):
    return b"keyturn/v1/" + name.encode() + b"\0"


def u16(number):
    return number.to_bytes(2, "big")


def u32(number):
    return number.to_bytes(4, "big")


def counted(data):
    return u16(len(data)) + data


def uuid_bytes(text):
    return uuid.UUID(text).bytes


def subkey(root_key, cluster, name):
    info = b"keyturn/v1/" + name.encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=cluster, info=info).derive(root_key)


def hmac_sha256(key, message):
    return hmac.new(key, message, hashlib.sha256).digest()


def key_identity(key, cluster):
    fixed = u32(key["id"]) + bytes([ALGORITHMS[key["algorithm"]], key["purpose"]])
    return fixed + cluster + uuid_bytes(key["scope"])


def unwrap(wrap_key, root_id, key, cluster):
    """The data key of one key row, checked against its commitment."""
    wrap = bytes.fromhex(key["wrap"])
    commitment = bytes.fromhex(key["commitment"])
    demand(wrap[:4] == b"KW\x01\x01" and len(wrap) == 64, "wrap header")
    bound = label("wrap") + wrap[:4] + u32(root_id) + key_identity(key, cluster) + commitment
    data_key = AESGCM(wrap_key).decrypt(wrap[4:16], wrap[16:], bound)
    demand(len(data_key) == 32, "data key length")
    computed = hmac_sha256(data_key, label("dek-commit") + key_identity(key, cluster))
    demand(hmac.compare_digest(computed, commitment), "commitment")
    return data_key


def xor(left, right):
    return bytes(a ^ b for a, b in zip(left, right))


def cmac_of_block(key, block):
    """CMAC-AES-256 of a message of exactly one block (SP 800-38B)."""

    def encrypt(one):
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        return encryptor.update(one) + encryptor.finalize()

    start = int.from_bytes(encrypt(bytes(16)), "big")
    doubled = (start << 1) & ((1 << 128) - 1)
    if start >> 127:
        doubled ^= 0x87
    return encrypt(xor(block, doubled.to_bytes(16, "big")))


def gcm_key_and_nonce(algorithm, data_key, nonce):
    if algorithm == 1:
        return data_key, nonce
    halves = [cmac_of_block(data_key, bytes([0, counter, 0x58, 0]) + nonce[:12]) for counter in (1, 2)]
    return halves[0] + halves[1], nonce[12:]


def tenant_bytes(cluster, tenant):
    if tenant is None:
        return bytes(16)
    try:
        if len(tenant) == 36:
            return uuid_bytes(tenant)
    except ValueError:
        pass
    return uuid.uuid5(uuid.UUID(bytes=cluster), tenant).bytes


def associated_data(header, nonce, value, cluster):
    fields = [tenant_bytes(cluster, value["tenant"]), uuid_bytes(value["target"]), uuid_bytes(value["column"])]
    if value["row"] is not None:
        fields.append(b"".join(counted(tag.encode()) + counted(text.encode()) for tag, text in value["row"]))
    profile = 0 if value["row"] is None else 1
    joined = b"".join(counted(field) for field in fields)
    return label("aad") + bytes([profile]) + header + nonce + u16(len(fields)) + joined


def envelope_bytes(value):
    stored = value["stored"]
    if value["storage"] == "bytes":
        return bytes.fromhex(stored)
    demand(stored.startswith("kt1."), "armour")
    armour = stored[4:]
    envelope = base64.urlsafe_b64decode(armour + "=" * (-len(armour) % 4))
    demand(base64.urlsafe_b64encode(envelope).decode().rstrip("=") == armour, "canonical armour")
    return envelope


def read_value(value, key, data_key, cluster):
    envelope = envelope_bytes(value)
    algorithm = ALGORITHMS[key["algorithm"]]
    header = b"KT\x01" + bytes([algorithm]) + u32(key["id"]) + bytes.fromhex(key["commitment"])[:4]
    demand(envelope[:12] == header, "header")
    end = 12 + NONCE_BYTES[algorithm]
    demand(len(envelope) >= end + 16, "length")
    nonce = envelope[12:end]
    gcm_key, gcm_nonce = gcm_key_and_nonce(algorithm, data_key, nonce)
    bound = associated_data(header, nonce, value, cluster)
    plaintext = AESGCM(gcm_key).decrypt(gcm_nonce, envelope[end:], bound)
    demand(plaintext.decode() == value["plaintext"], "plaintext")
    demand(nonce.hex() == value["nonce"], "nonce")
    demand(AESGCM(gcm_key).encrypt(gcm_nonce, plaintext, bound) == envelope[end:], "encrypting again")


def main(path):
    with open(path, encoding="utf-8") as file:
        golden = json.load(file)
    cluster = uuid_bytes(golden["cluster"])
    root_key = bytes.fromhex(golden["rootKey"])
    root_id = golden["rootId"]
    wrap_key = subkey(root_key, cluster, "wrap")
    fingerprint = hmac_sha256(subkey(root_key, cluster, "kcv"), label("kek-fingerprint") + cluster)
    demand(fingerprint.hex() == golden["fingerprint"], "fingerprint")
    token = bytes.fromhex(golden["token"])
    AESGCM(wrap_key).decrypt(token[:12], token[12:], label("token") + cluster + u32(root_id) + fingerprint)

    keys = {}
    for key in golden["keys"]:
        data_key = unwrap(wrap_key, root_id, key, cluster)
        demand(data_key.hex() == key["dataKey"], f"data key {key['id']}")
        keys[key["id"]] = (key, data_key)
    for value in golden["values"]:
        key, data_key = keys[value["keyId"]]
        try:
            read_value(value, key, data_key, cluster)
        except Exception as error:
            raise Difference(f"{value['name']}: {error!r}") from error
    demand(len(golden["values"]) > 0, "no values in the golden file")
    print(f"{len(keys)} data keys unwrapped, {len(golden['values'])} envelopes opened")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: read_envelopes.py GOLDEN_FILE")
    try:
        main(sys.argv[1])
    except Exception as error:  # whatever it is, the reader did not get the data back
        sys.exit(f"difference: {error!r}")
