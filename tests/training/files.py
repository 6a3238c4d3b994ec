"""Files as an adversary would make them: with a checksum that fits whatever is in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

BEGIN = b'{"__metadata__":{"sha256":"'


def signed(header: bytes, data: bytes = b"") -> bytes:
    """A file with this header after its checksum: ``header`` continues behind the 64 digits."""
    whole = BEGIN + b"0" * 64 + header
    text = len(whole).to_bytes(8, "little") + whole + data
    digest = hashlib.sha256(text).hexdigest().encode()
    return text.replace(BEGIN + b"0" * 64, BEGIN + digest, 1)


def with_description(path: Path, description: str | bytes, tensors: str = "", data: bytes = b"") -> Path:
    """Write a file with any text in the place of the description."""
    text = description if isinstance(description, str) else description.decode("latin-1")
    path.write_bytes(signed(f'","description":{json.dumps(text)}}}{tensors}}}'.encode(), data))
    return path
