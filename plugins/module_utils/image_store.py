"""An image taken apart on the control node: its configuration and its layers, each kept once and compressed once.

A directory holds ``config.json`` (its digest is the image's id), ``manifest.json`` (an OCI manifest of it) and
``layers/<diff id>.tar.gz``. From it come archives for ``docker load`` with all layers or with some of them: an engine
with the classic store takes a layer that it has already from its own store, and does not look for it in the archive.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Optional

# Measured on the dependencies of the app (28 MB): level 1 gives 8.8 MB, 6 gives 7.8 MB in 1 s, 9 gives 7.7 MB in 5 s.
_COMPRESSION_LEVEL = 6
_CHUNK = 1 << 20
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


class ImageError(RuntimeError):
    """The directory or the archive holds no usable image; the message is one sentence for the operator."""


@dataclass(frozen=True)
class Layer:
    """A layer: the digest of its tar, and its compressed file with that one's digest and size."""

    diff_id: str
    path: Path
    digest: str
    size: int


@dataclass(frozen=True)
class Image:
    """An image as the store has it."""

    config: bytes
    manifest: bytes
    layers: tuple[Layer, ...]

    @property
    def id(self) -> str:
        """The digest of its configuration: what engines with the classic store call it."""
        return _digest(self.config)

    @property
    def manifest_digest(self) -> str:
        """The digest of its manifest: what engines with the containerd store call it."""
        return _digest(self.manifest)

    @property
    def short(self) -> str:
        """Twelve digits of its id, used as its tag."""
        return self.id.partition(":")[2][:12]

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """Its layers from the bottom."""
        return tuple(layer.diff_id for layer in self.layers)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _hex(digest: str) -> str:
    return digest.partition(":")[2]


# --- into the store ----------------------------------------------------------------------------------------------


def unpack(archive: Path, directory: Path, known_layers: Iterable[Path] = ()) -> Image:
    """Take a ``docker save`` archive apart into `directory`, which must not exist.

    Takes the old layout (``<id>/layer.tar``) and the OCI one (``blobs/sha256/…``, compressed or not) alike. A layer that
    is in one of `known_layers` (the `layers` directories of other images) is linked instead of compressed again.
    """
    (directory / "layers").mkdir(parents=True)
    with tarfile.open(archive) as tar:
        listed = json.loads(_member(tar, "manifest.json").read())
        if len(listed) != 1:
            raise ImageError(f"{archive} holds {len(listed)} images, expected one")
        config = _member(tar, listed[0]["Config"]).read()
        diff_ids = json.loads(config)["rootfs"]["diff_ids"]
        names = listed[0]["Layers"]
        if len(names) != len(diff_ids):
            raise ImageError(f"{archive} holds {len(names)} layers, but its configuration names {len(diff_ids)}")
        known = list(known_layers)
        for diff_id, name in zip(diff_ids, names):
            _keep_layer(tar, name, diff_id, directory / "layers", known)
    (directory / "config.json").write_bytes(config)
    layers = [_layer(directory, diff_id) for diff_id in diff_ids]
    (directory / "manifest.json").write_bytes(_json(_manifest(config, layers)))
    return read(directory)


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        found = tar.extractfile(name)
    except KeyError as error:
        raise ImageError(f"the archive lacks {name}") from error
    if found is None:
        raise ImageError(f"{name} in the archive is no file")
    return found


def _keep_layer(tar: tarfile.TarFile, name: str, diff_id: str, layers: Path, known: Sequence[Path]) -> None:
    target = layers / f"{_hex(diff_id)}.tar.gz"
    if target.exists():
        return
    for other in known:
        candidate = other / target.name
        if candidate.exists():
            os.link(candidate, target)
            return
    source: Any = _member(tar, name)
    magic = source.read(4)
    source.seek(0)
    if magic[:2] == b"\x1f\x8b":
        source = gzip.GzipFile(fileobj=source)
    elif magic == b"\x28\xb5\x2f\xfd":
        raise ImageError(f"layer {name} is compressed with zstd, which this engine was not expected to do")
    seen = hashlib.sha256()
    with open(target, "wb") as file, gzip.GzipFile("", "wb", _COMPRESSION_LEVEL, file, mtime=0) as packed:
        while chunk := source.read(_CHUNK):
            seen.update(chunk)
            packed.write(chunk)
    if seen.hexdigest() != _hex(diff_id):
        raise ImageError(f"layer {name} in the archive is not {diff_id}, as the image's configuration says")


def _layer(directory: Path, diff_id: str) -> Layer:
    path = directory / "layers" / f"{_hex(diff_id)}.tar.gz"
    seen = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            seen.update(chunk)
    return Layer(diff_id, path, f"sha256:{seen.hexdigest()}", path.stat().st_size)


def _manifest(config: bytes, layers: Sequence[Layer]) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "config": {"mediaType": _CONFIG_TYPE, "digest": _digest(config), "size": len(config)},
        "layers": [{"mediaType": _LAYER_TYPE, "digest": layer.digest, "size": layer.size} for layer in layers],
    }


# --- out of the store --------------------------------------------------------------------------------------------


def read(directory: Path) -> Image:
    """The image in this directory; raises ImageError where a part of it is missing or not the one it should be."""
    try:
        config = (directory / "config.json").read_bytes()
        manifest = (directory / "manifest.json").read_bytes()
        listed = json.loads(manifest)
        layers = []
        for diff_id, entry in zip(json.loads(config)["rootfs"]["diff_ids"], listed["layers"]):
            path = directory / "layers" / f"{_hex(diff_id)}.tar.gz"
            if path.stat().st_size != entry["size"]:
                raise ImageError(f"{path} has {path.stat().st_size} bytes, its manifest says {entry['size']}")
            layers.append(Layer(diff_id, path, entry["digest"], entry["size"]))
    except (OSError, ValueError, KeyError) as error:
        raise ImageError(f"{directory} holds no whole image: {error}") from error
    if listed["config"]["digest"] != _digest(config):
        raise ImageError(f"{directory}: config.json is not the one that manifest.json names")
    return Image(config, manifest, tuple(layers))


def parse_present(printed: str) -> tuple[set[str], list[tuple[str, ...]]]:
    """The ids and the layer chains of a host's images, from lines ``<id> <json list of diff ids>``."""
    ids, chains = set(), []
    for line in printed.splitlines():
        identity, _, layers = line.strip().partition(" ")
        if not identity.startswith("sha256:"):
            continue
        ids.add(identity)
        chains.append(tuple(json.loads(layers) or ()))
    return ids, chains


def layers_present(wanted: Sequence[str], chains: Iterable[Sequence[str]]) -> int:
    """How many of the wanted layers, from the bottom, a host has: the longest beginning that one of its chains shares.

    A layer in the middle of another chain does not count, as engines keep layers by the chain below them.
    """
    longest = 0
    for chain in chains:
        shared = 0
        for one, other in zip(wanted, chain):
            if one != other:
                break
            shared += 1
        longest = max(longest, shared)
    return longest


def write_archive(image: Image, reference: str, file: IO[bytes], skip: int = 0) -> None:
    """Write an archive for ``docker load`` that leaves out the lowest `skip` layers.

    It reads both ways: as the engine's own format (manifest.json) and as an OCI layout (index.json). Layers are
    compressed as they are in the store.
    """
    name = f"docker.io/library/{reference}"
    index = {
        "schemaVersion": 2,
        "mediaType": _INDEX_TYPE,
        "manifests": [
            {
                "mediaType": _MANIFEST_TYPE,
                "digest": image.manifest_digest,
                "size": len(image.manifest),
                "annotations": {
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
                },
            }
        ],
    }
    listed = [
        {
            "Config": _blob(image.id),
            "RepoTags": [reference],
            "Layers": [_blob(layer.digest) for layer in image.layers],
        }
    ]
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(tar, "index.json", _json(index))
        _add(tar, "manifest.json", _json(listed))
        _add(tar, _blob(image.manifest_digest), image.manifest)
        _add(tar, _blob(image.id), image.config)
        written = set()
        for layer in image.layers[skip:]:
            if layer.digest in written:
                continue
            written.add(layer.digest)
            with open(layer.path, "rb") as source:
                _add(tar, _blob(layer.digest), None, source, layer.size)


def _blob(digest: str) -> str:
    return f"blobs/sha256/{_hex(digest)}"


def _add(tar: tarfile.TarFile, name: str, data: Optional[bytes], source: Optional[IO[bytes]] = None, size: int = 0) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o644
    entry.size = size if data is None else len(data)
    tar.addfile(entry, source if data is None else io.BytesIO(data))
