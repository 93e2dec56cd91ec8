"""Images taken apart and put together again, and what a real engine makes of an archive without the layers it has."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.image_store import (
    Image,
    ImageError,
    layers_present,
    parse_present,
    read,
    unpack,
    write_archive,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_testing import ROOT, missing


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def layer_tar(name: str, content: bytes) -> bytes:
    """A layer with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def config_of(layers: list[bytes]) -> bytes:
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    return json.dumps(
        {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    ).encode()


def save(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def old_save(path: Path, layers: list[bytes]) -> Path:
    """What `docker save` of engines before 25 writes."""
    config = config_of(layers)
    names = [f"{sha256(b'id' + layer)}/layer.tar" for layer in layers]
    listed = [{"Config": f"{sha256(config)}.json", "RepoTags": None, "Layers": names}]
    return save(path, {**dict(zip(names, layers, strict=True)), f"{sha256(config)}.json": config,
                       "manifest.json": json.dumps(listed).encode()})  # fmt: skip


def oci_save(path: Path, layers: list[bytes], compressed: bool) -> Path:
    """What newer ones write: blobs by digest, which the containerd store keeps compressed."""
    config = config_of(layers)
    blobs = [gzip.compress(layer) if compressed else layer for layer in layers]
    names = [f"blobs/sha256/{sha256(blob)}" for blob in blobs]
    listed = [{"Config": f"blobs/sha256/{sha256(config)}", "RepoTags": ["x:1"], "Layers": names}]
    return save(path, {**dict(zip(names, blobs, strict=True)), f"blobs/sha256/{sha256(config)}": config,
                       "oci-layout": b"{}", "manifest.json": json.dumps(listed).encode()})  # fmt: skip


def two_layers() -> list[bytes]:
    return [layer_tar("base", secrets.token_bytes(200_000)), layer_tar("app", secrets.token_bytes(64))]


@pytest.fixture
def layers() -> list[bytes]:
    """A base and an app layer that no other test has."""
    return two_layers()


def test_every_layout_of_docker_save_gives_the_same_image(tmp_path: Path, layers: list[bytes]) -> None:
    images = [
        unpack(old_save(tmp_path / "old.tar", layers), tmp_path / "a"),
        unpack(oci_save(tmp_path / "new.tar", layers, False), tmp_path / "b"),
        unpack(oci_save(tmp_path / "packed.tar", layers, True), tmp_path / "c"),
    ]
    assert {image.id for image in images} == {f"sha256:{sha256(config_of(layers))}"}
    assert len({image.manifest_digest for image in images}) == 1
    assert images[0].diff_ids == tuple(f"sha256:{sha256(layer)}" for layer in layers)


def test_what_was_unpacked_is_read_again(tmp_path: Path, layers: list[bytes]) -> None:
    assert unpack(old_save(tmp_path / "s.tar", layers), tmp_path / "i") == read(tmp_path / "i")


def test_a_layer_that_another_image_has_is_linked(tmp_path: Path, layers: list[bytes]) -> None:
    one = unpack(old_save(tmp_path / "1.tar", layers), tmp_path / "1")
    two = unpack(old_save(tmp_path / "2.tar", [layers[0], layer_tar("app", b"new")]), tmp_path / "2", [tmp_path / "1/layers"])
    assert one.layers[0].path.stat().st_ino == two.layers[0].path.stat().st_ino
    assert one.layers[0].digest == two.layers[0].digest


def test_a_layer_that_comes_twice_is_kept_and_sent_once(tmp_path: Path) -> None:
    empty = layer_tar("x", b"")
    image = unpack(old_save(tmp_path / "s.tar", [empty, empty]), tmp_path / "i")
    assert len(image.layers) == 2
    assert len(list((tmp_path / "i" / "layers").iterdir())) == 1
    assert len(blobs(image, 0)) == 3


def blobs(image: Image, skip: int) -> list[str]:
    buffer = io.BytesIO()
    write_archive(image, "t:1", buffer, skip)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        return [name for name in tar.getnames() if name.startswith("blobs/")]


def test_an_archive_leaves_out_the_lowest_layers_and_names_all(tmp_path: Path, layers: list[bytes]) -> None:
    image = unpack(old_save(tmp_path / "s.tar", layers), tmp_path / "i")
    assert len(blobs(image, 0)) == 4
    partial = blobs(image, 1)
    assert f"blobs/{image.layers[1].digest.replace(':', '/')}" in partial
    assert f"blobs/{image.layers[0].digest.replace(':', '/')}" not in partial


def broken(tmp_path: Path, layers: list[bytes], change: dict[str, Any]) -> Path:
    config = config_of(layers)
    listed = {"Config": "c.json", "Layers": [f"{at}.tar" for at in range(len(layers))], **change}
    files = {f"{at}.tar": layer for at, layer in enumerate(layers)}
    return save(tmp_path / "broken.tar", {**files, "c.json": config, "manifest.json": json.dumps([listed]).encode()})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"Layers": ["0.tar"]}, "holds 1 layers, but its configuration names 2"),
        ({"Layers": ["1.tar", "0.tar"]}, "is not sha256:"),
        ({"Layers": ["0.tar", "2.tar"]}, "the archive lacks 2.tar"),
        ({"Config": "no.json"}, "the archive lacks no.json"),
    ],
)
def test_a_broken_archive_is_refused(tmp_path: Path, layers: list[bytes], change: dict[str, Any], says: str) -> None:
    with pytest.raises(ImageError, match=says):
        unpack(broken(tmp_path, layers, change), tmp_path / "i")


def test_an_archive_of_several_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds 2 images, expected one"):
        unpack(save(tmp_path / "s.tar", {"manifest.json": b"[{}, {}]"}), tmp_path / "i")


def test_a_directory_in_place_of_a_layer_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        entry = tarfile.TarInfo("manifest.json")
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
    with pytest.raises(ImageError, match="is no file"):
        unpack(tmp_path / "s.tar", tmp_path / "i")


def test_a_layer_that_this_reader_cannot_unpack_is_refused(tmp_path: Path, layers: list[bytes]) -> None:
    with pytest.raises(ImageError, match="compressed with zstd"):
        unpack(broken(tmp_path, [b"\x28\xb5\x2f\xfd" + layers[0]], {}), tmp_path / "i")


@pytest.mark.parametrize("harm", ["cut", "remove", "config", "manifest"])
def test_a_damaged_store_is_refused(tmp_path: Path, layers: list[bytes], harm: str) -> None:
    image = unpack(old_save(tmp_path / "s.tar", layers), tmp_path / "i")
    if harm == "cut":
        image.layers[0].path.write_bytes(b"")
    elif harm == "remove":
        image.layers[0].path.unlink()
    elif harm == "config":
        (tmp_path / "i" / "config.json").write_bytes(image.config + b" ")
    else:
        (tmp_path / "i" / "manifest.json").write_text("{")
    with pytest.raises(ImageError):
        read(tmp_path / "i")


DIFF_IDS = st.lists(st.sampled_from("abcd"), max_size=5)


@settings(deadline=None)
@given(DIFF_IDS, st.lists(DIFF_IDS, max_size=4))
def test_a_layer_counts_only_with_its_whole_chain_below(wanted: list[str], chains: list[list[str]]) -> None:
    count = layers_present(wanted, chains)
    assert count == max((n for n in range(len(wanted) + 1) if n == 0 or any(c[:n] == wanted[:n] for c in chains)), default=0)


def test_what_the_host_prints_is_read() -> None:
    printed = 'sha256:1 ["sha256:a","sha256:b"]\nError: No such image\nsha256:2 null\n\n'
    assert parse_present(printed) == ({"sha256:1", "sha256:2"}, [("sha256:a", "sha256:b"), ()])


# --- a real engine ---


@pytest.fixture
def docker() -> str:
    """The client of an engine that runs."""
    found = shutil.which("docker")
    if found is None or subprocess.run([found, "info"], capture_output=True, check=False).returncode:
        missing("docker")
    return found


LATE = """#!/bin/sh
case "$*" in *RootFS.Layers*) echo 'sha256:{{}} {chain}' ;; *) exec {docker} "$@" ;; esac
"""

PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - release_image: {image_dir: "{{ dir }}/base", repository: "{{ repository }}"}
      register: base
    - release_image: {image_dir: "{{ dir }}/app", repository: "{{ repository }}"}
      check_mode: true
      register: checked
    - release_image: {image_dir: "{{ dir }}/app", repository: "{{ repository }}"}
      register: app
    - release_image: {image_dir: "{{ dir }}/app", repository: "{{ repository }}"}
      register: again
    - release_image: {image_dir: "{{ dir }}/app", repository: "{{ repository }}-other"}
      register: renamed
    - release_image: {image_dir: "{{ dir }}/late", repository: "{{ repository }}", docker: "{{ dir }}/late.sh"}
      register: late
    - release_image: {image_dir: "{{ dir }}/pulled", repository: "{{ repository }}", registry: "{{ registry }}"}
      register: pulled
    - release_image: {image_dir: "{{ dir }}/nothing"}
      check_mode: true
      register: unbuilt
    - release_image: {image_dir: "{{ dir }}/nothing"}
      register: refused
      ignore_errors: true
    - copy: {content: "{{ told | to_json }}", dest: "{{ dir }}/told.json", mode: "0644"}
      vars:
        told: {base: "{{ base }}", checked: "{{ checked }}", app: "{{ app }}", again: "{{ again }}", renamed: "{{ renamed }}",
               late: "{{ late }}", pulled: "{{ pulled }}", unbuilt: "{{ unbuilt }}", refused: "{{ refused }}"}
"""


class Registry:
    """The part of a registry that a pull by digest uses, over the images of the store."""

    def __init__(self, image: Image) -> None:
        blobs = {image.id: image.config, **{layer.digest: layer.path.read_bytes() for layer in image.layers}}
        found = {f"/v2/bot/blobs/{digest}": ("application/octet-stream", data) for digest, data in blobs.items()}
        found[f"/v2/bot/manifests/{image.manifest_digest}"] = ("application/vnd.oci.image.manifest.v1+json", image.manifest)
        found["/v2/"] = ("application/json", b"{}")

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kind, data = found.get(self.path, ("text/plain", b""))
                self.send_response(200 if self.path in found else 404)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.reference = f"127.0.0.1:{self.server.server_address[1]}/bot@{image.manifest_digest}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def moved(tmp_path: Path, docker: str, layers: list[bytes]) -> Iterator[dict[str, Any]]:
    """What the action says of a base image, then of one that adds a layer to it, against this machine's engine."""
    repository = f"tb-test-{os.getpid()}"
    base = unpack(old_save(tmp_path / "base.tar", layers[:1]), tmp_path / "base")
    app = unpack(old_save(tmp_path / "app.tar", layers), tmp_path / "app")
    # An image that was there when the host was asked, and is gone when the archive of the others arrives.
    late = unpack(old_save(tmp_path / "late.tar", [layer_tar("gone", b"gone"), layers[1]]), tmp_path / "late")
    (tmp_path / "late.sh").write_text(LATE.format(docker=docker, chain=json.dumps([late.diff_ids[0]])))
    (tmp_path / "late.sh").chmod(0o755)
    pulled = unpack(old_save(tmp_path / "pulled.tar", two_layers()), tmp_path / "pulled")
    registry = Registry(pulled)
    (tmp_path / "play.yml").write_text(PLAY)
    command = [str(ROOT / ".venv/bin/ansible-playbook"), "-i", "localhost,", "-c", "local", str(tmp_path / "play.yml")]
    command += ["-e", json.dumps({"dir": str(tmp_path), "repository": repository, "registry": registry.reference})]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    finally:
        registry.stop()
    tags = [
        registry.reference,
        f"{repository}:{pulled.short}",
        f"{repository}:{late.short}",
        f"{repository}:{base.short}",
        f"{repository}:{app.short}",
        f"{repository}-other:{app.short}",
    ]
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        told: dict[str, Any] = json.loads((tmp_path / "told.json").read_text())
        yield {"ids": {"base": base, "app": app, "late": late, "pulled": pulled}, **told}
    finally:
        subprocess.run([docker, "image", "rm", "--force", *tags], capture_output=True, check=False)


def test_a_real_engine_takes_the_missing_layer_alone(moved: dict[str, Any]) -> None:
    base, app = moved["base"], moved["app"]
    assert (base["changed"], base["method"], base["layers_present"]) == (True, "complete", 0)
    assert (app["changed"], app["method"], app["layers_present"], app["layers_moved"]) == (True, "partial", 1, 1)
    assert app["host_image"] in (moved["ids"]["app"].id, moved["ids"]["app"].manifest_digest)
    assert app["bytes_moved"] < base["bytes_moved"]
    checked = moved["checked"]
    assert (checked["changed"], checked["method"], checked["host_image"]) == (True, "partial", None)
    again = moved["again"]
    assert (again["changed"], again["bytes_moved"], again["method"]) == (False, 0, "present")
    renamed = moved["renamed"]
    assert (renamed["changed"], renamed["bytes_moved"], renamed["method"]) == (True, 0, "present")
    assert "holds no whole image" in moved["refused"]["msg"]
    late = moved["late"]
    assert (late["changed"], late["method"], late["layers_moved"]) == (True, "complete", 2)
    assert late["note"].startswith("the engine did not take the archive of the missing layers alone")
    assert late["host_image"] in (moved["ids"]["late"].id, moved["ids"]["late"].manifest_digest)
    pulled = moved["pulled"]
    assert (pulled["changed"], pulled["method"], pulled["bytes_moved"]) == (True, "registry", 0)
    assert pulled["host_image"] in (moved["ids"]["pulled"].id, moved["ids"]["pulled"].manifest_digest)
    assert (moved["unbuilt"]["changed"], moved["unbuilt"]["method"]) == (True, "unknown")
