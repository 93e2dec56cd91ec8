#!/usr/bin/python
"""Build a version once, and find it again for ever."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from ansible.module_utils.artifact import (
    ArtifactError,
    check_python,
    resolve,
    same_dependencies,
    source_digest,
    source_files,
    tag_of,
    versions_of_tags,
)
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.image_store import ImageError, unpack
from ansible.module_utils.image_store import read as read_image

DOCUMENTATION = r"""
module: release_build
short_description: Build a version once, and find it again for ever
description:
  - Runs on the control node. A version is taken from the store if it is there; else it is built, from the checkout if that
    is its version, else from the git tag C(v<version>).
  - What is built is the app's wheel, the wheels of its locked dependencies for each Python, and the image, taken apart into
    layers. It is built aside and moved into the store as a whole, so that the store never holds half of a version.
author: Trading Bot Ops (@trading-bot-ops)
options:
  state:
    description: C(present) makes sure that the version is in the store; C(read) only tells what there is.
    type: str
    choices: [present, read]
    default: present
  version:
    description: The version; the checkout's own if omitted.
    type: str
  store:
    description: Where built versions are kept.
    type: path
    required: true
  source:
    description: The repository.
    type: path
    required: true
  app_dir:
    description: The app's directory in the repository.
    type: str
    default: app
  base_image:
    description: The image that the app's image starts from. It must be on this machine, or it is pulled.
    type: str
  build_image:
    description: Whether the image is needed; hosts with the runtime C(systemd) need none.
    type: bool
    default: true
  image_python:
    description: The Python in the base image.
    type: str
    default: "3.13"
  python_versions:
    description: The Pythons that wheels are kept for, beside the image's.
    type: list
    elements: str
    default: ["3.13"]
  platforms:
    description: The platform tags of the wheels; those of this machine's kind of processor if omitted.
    type: list
    elements: str
    default: []
  extra:
    description: >-
      An extra of the app whose dependencies are wanted too, by the lock C(requirements-<extra>.txt); they and the version's own
      lie in C(extra_directory), apart from what its image is built from. Empty for none.
    type: str
    default: ""
  changed_source:
    description: >-
      What to do where the store has the version and the checkout, being of the same version, has other sources: fail,
      or use the store and warn.
    type: str
    choices: [fail, warn]
    default: fail
  docker:
    description: The Docker client.
    type: str
    default: docker
attributes:
  check_mode:
    support: full
    details: It says whether it would build; the image's digest of a version that is not built yet is not known then.
"""

EXAMPLES = r"""
- name: Ensure the version is built
  release_build:
    version: 1.4.0
    store: "{{ playbook_dir }}/../.releases"
    source: "{{ playbook_dir }}/.."
    base_image: python:3.13-slim
  delegate_to: localhost
  register: __release_built
"""

RETURN = r"""
version: {description: The version, type: str, returned: always}
origin: {description: "store, checkout or tag", type: str, returned: state is present}
built: {description: Whether something was built now, type: bool, returned: state is present}
directory: {description: The version's directory in the store, type: str, returned: state is present}
artifact: {description: Its release-artifact.json. Null in check mode if it is not built, type: dict, returned: state is present}
image: {description: The digest of the image's configuration; without an image the wheel's, type: str, returned: state is present}
image_manifest: {description: The digest of the image's manifest, type: str, returned: state is present}
image_dir: {description: The image's directory, type: str, returned: state is present}
wheel: {description: The path of the app's wheel, type: str, returned: state is present}
wheel_sha256: {description: Its digest in hex, type: str, returned: state is present}
wheels_dirs: {description: By Python the directory of the dependencies' wheels, type: dict, returned: state is present}
extra_directory: {description: "Wheels and lock of the version with its extra", type: str, returned: with extra}
requirements: {description: The path of the locked requirements, type: str, returned: state is present}
versions: {description: What the store has, type: list, returned: always}
checkout_version: {description: The checkout's own version, type: str, returned: always}
"""

# Archive members get this time, so that the same sources give the same wheel whenever they are built.
_SOURCE_DATE_EPOCH = "1577836800"
_LONGEST = 3600
_TAIL = 25
_DEFAULT_PLATFORMS = ("manylinux_2_28_{0}", "manylinux2014_{0}", "manylinux_2_17_{0}", "manylinux_2_5_{0}", "manylinux1_{0}")
_RECORD = "release-artifact.json"


def run(what: str, command: Sequence[str], cwd: Optional[Path] = None, env: Optional[Mapping[str, str]] = None) -> str:
    """The command's standard output; raises ArtifactError with the tail of what it printed when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, timeout=_LONGEST, check=False
        )
    except FileNotFoundError as error:
        raise ArtifactError(f"{what}: {command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ArtifactError(f"{what}: {command[0]} took longer than {_LONGEST} s") from error
    if done.returncode:
        printed = (done.stdout + done.stderr).decode(errors="replace").strip().splitlines()
        tail = "\n".join(printed[-_TAIL:])
        raise ArtifactError(f"{what} failed ({command[0]} ended with {done.returncode}):\n{tail}")
    return done.stdout.decode(errors="replace")


def sha256_of(path: Path) -> str:
    """The file's digest in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def version_of(app: Path) -> Optional[str]:
    """The version in the app's pyproject.toml, None where there is none."""
    import tomllib  # of Python 3.11, which the control node has; this file is read on older ones too

    try:
        project = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactError(f"{app / 'pyproject.toml'} cannot be read: {error}") from error
    return str(project["version"]) if "version" in project else None


class Store:
    """The directory of built versions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def versions(self) -> list[str]:
        """The versions that are there."""
        return sorted(record.parent.name for record in self.path.glob(f"[0-9]*/{_RECORD}"))

    def artifact(self, version: str) -> dict[str, Any]:
        """The record of a version."""
        record = self.path / version / _RECORD
        try:
            found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{record} cannot be read: {error}; remove {record.parent} to have it built again") from error
        return found

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """A directory beside the versions to build in; it is gone afterwards."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=".build-", dir=self.path))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


class Build:
    """One run of the module: what is asked for, and the parts that are made for it."""

    def __init__(self, params: Mapping[str, Any], store: Store) -> None:
        self.params = params
        self.store = store
        self.source = Path(params["source"])
        self.app = self.source / params["app_dir"]
        self.docker = params["docker"]
        wanted = [check_python(python) for python in params["python_versions"]]
        if params["build_image"]:
            wanted.append(check_python(params["image_python"]))
        self.pythons = sorted(set(wanted))

    # sources

    def tags(self) -> list[str]:
        """The versions that the repository has tags of; none where it is no repository."""
        try:
            return versions_of_tags(run("git tag", ["git", "-C", str(self.source), "tag", "--list", "v*"]).split())
        except ArtifactError:
            return []

    def commit(self, name: str) -> Optional[str]:
        """The commit that a name stands for, None where there is none."""
        try:
            return run("git rev-parse", ["git", "-C", str(self.source), "rev-parse", f"{name}^{{commit}}"]).strip()
        except ArtifactError:
            return None

    def fetch_source(self, version: str, origin: str, into: Path) -> None:
        """The app's files of a version: copied from the checkout, or taken from the tag."""
        app = self.app
        if origin == "tag":
            archive = into.parent / "source.tar"
            unpacked = into.parent / "tag"
            unpacked.mkdir()
            what = f"taking {self.params['app_dir']} from the tag {tag_of(version)}"
            run(
                what,
                ["git", "-C", str(self.source), "archive", "--output", str(archive), tag_of(version), self.params["app_dir"]],
            )
            run(what, ["tar", "--extract", "--file", str(archive), "--directory", str(unpacked)])
            app = unpacked / self.params["app_dir"]
        for file in source_files(app):
            (into / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(app / file, into / file)
        if version_of(into) != version:
            raise ArtifactError(f"the tag {tag_of(version)} has version {version_of(into)} in its pyproject.toml")
        for name in ("requirements.txt", "Dockerfile"):
            if not (into / name).exists():
                raise ArtifactError(f"version {version} has no {name} in {self.params['app_dir']}")

    # parts

    def make_wheel(self, source: Path, into: Path) -> Path:
        """The app's wheel."""
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(into), str(source)]
        if importlib.util.find_spec("hatchling"):
            command.insert(-1, "--no-build-isolation")
        run("building the app's wheel", command, env={"SOURCE_DATE_EPOCH": _SOURCE_DATE_EPOCH})
        wheels = list(into.glob("*.whl"))
        if len(wheels) != 1:
            raise ArtifactError(f"building the app's wheel gave {len(wheels)} wheels, expected one")
        return wheels[0]

    def make_wheels(self, requirements: Path, python: str, into: Path) -> None:
        """The wheels of the locked dependencies for one Python: linked from a version with the same lock, else downloaded."""
        into.mkdir()
        digest = sha256_of(requirements)
        for version in self.store.versions():
            kept = self.store.path / version / into.name
            if same_dependencies(self.store.artifact(version), digest, python) and kept.is_dir():
                for wheel in kept.iterdir():
                    os.link(wheel, into / wheel.name)
                return
        machine = platform.machine()
        platforms = self.params["platforms"] or [name.format(machine) for name in _DEFAULT_PLATFORMS]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary=:all:"]
        command += ["--implementation", "cp", "--python-version", python, "--dest", str(into)]
        for name in platforms:
            command += ["--platform", name]
        run(f"downloading the dependencies for Python {python}", [*command, "--requirement", str(requirements)])

    def make_image(self, artifact: Path, workshop: Path, into: Path) -> dict[str, str]:
        """The image, built from the artifact's wheels and taken apart."""
        base = self.params["base_image"]
        if not base:
            raise ArtifactError("base_image is needed to build the image")
        self.need_base_image(base)
        context = workshop / "context"
        for kind, wheels in (
            ("app", artifact.glob("*.whl")),
            ("deps", (artifact / f"wheels-py{self.params['image_python']}").glob("*.whl")),
        ):
            (context / "wheels" / kind).mkdir(parents=True)
            for wheel in wheels:
                os.link(wheel, context / "wheels" / kind / wheel.name)
        for name in ("Dockerfile", "requirements.txt"):
            os.link(artifact / name, context / name)
        identity = workshop / "image.id"
        command = [self.docker, "build", "--network", "none", "--build-arg", f"BASE_IMAGE={base}", "--iidfile", str(identity)]
        run("building the image", [*command, str(context)], env={"DOCKER_BUILDKIT": "0"})
        built = identity.read_text().strip()
        archive = workshop / "image.tar"
        run("saving the image", [self.docker, "save", "--output", str(archive), built])
        image = unpack(archive, into, self.store.path.glob("[0-9]*/image/layers"))
        # The tag keeps what was built, and with it the builder's cache: the same dependencies give the same layers.
        run("naming the image", [self.docker, "tag", built, f"trading-bot:{image.short}"])
        return {"image": image.id, "image_manifest": image.manifest_digest, "base_image": base}

    def need_base_image(self, base: str) -> None:
        """The base image on this machine."""
        try:
            run("looking for the base image", [self.docker, "image", "inspect", "--format", "{{.Id}}", base])
        except ArtifactError:
            try:
                run("pulling", [self.docker, "pull", base])
            except ArtifactError as error:
                raise ArtifactError(f"the base image {base} is not on this machine and cannot be pulled: {error}") from error

    # the whole

    def lacks(self, artifact: Mapping[str, Any]) -> tuple[list[str], bool]:
        """The Pythons whose wheels an artifact lacks, and whether it lacks the image."""
        pythons = [python for python in self.pythons if python not in artifact["python_versions"]]
        return pythons, bool(self.params["build_image"] and not artifact.get("image_manifest"))

    def complete(self, artifact: dict[str, Any], directory: Path, workshop: Path) -> None:
        """Make what the artifact in this directory lacks, each part moved in as a whole, and record it."""
        pythons, image = self.lacks(artifact)
        for python in pythons:
            part = workshop / f"wheels-py{python}"
            self.make_wheels(directory / "requirements.txt", python, part)
            part.rename(directory / part.name)
            artifact["python_versions"] = sorted([*artifact["python_versions"], python])
        if image:
            part = workshop / "image"
            made = self.make_image(directory, workshop, part)
            part.rename(directory / "image")
            artifact.update(made, image_python=self.params["image_python"])
        record = workshop / _RECORD
        record.write_text(json.dumps(artifact, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        record.rename(directory / _RECORD)

    def new(self, version: str, origin: str) -> dict[str, Any]:
        """Build a version and move it into the store; if another run was faster, what that one built is taken."""
        with self.store.workshop() as workshop:
            source, directory = workshop / "source", workshop / "artifact"
            source.mkdir()
            directory.mkdir()
            self.fetch_source(version, origin, source)
            for name in ("requirements.txt", "Dockerfile"):
                shutil.copy2(source / name, directory / name)
            for lock in source.glob("requirements-*.txt"):
                shutil.copy2(lock, directory / lock.name)
            wheel = self.make_wheel(source, directory)
            artifact: dict[str, Any] = {
                "version": version,
                "origin": origin,
                "commit": self.commit(tag_of(version) if origin == "tag" else "HEAD"),
                "source_sha256": source_digest(source),
                "requirements_sha256": sha256_of(directory / "requirements.txt"),
                "wheel": wheel.name,
                "wheel_sha256": sha256_of(wheel),
                "python_versions": [],
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }
            self.complete(artifact, directory, workshop)
            try:
                directory.rename(self.store.path / version)
            except OSError:
                if version not in self.store.versions():
                    raise
                artifact = self.store.artifact(version)
        return artifact

    def check_source(self, version: str, artifact: Mapping[str, Any]) -> Optional[str]:
        """The warning that the checkout is not what was built under its version; raises ArtifactError where that must not be."""
        if version != version_of(self.app) or artifact.get("source_sha256") == source_digest(self.app):
            return None
        said = (
            f"the sources in {self.app} are not those that {version} was built from on {artifact.get('created_at')}:"
            f" raise the version in {self.app / 'pyproject.toml'} to release them"
        )
        if self.params["changed_source"] == "fail":
            raise ArtifactError(said)
        return said

    def present(self, check_mode: bool) -> dict[str, Any]:
        """Make sure that the version is there."""
        checkout = version_of(self.app)
        version = self.params["version"] or checkout
        if version is None:
            raise ArtifactError(f"no version was given, and {self.app / 'pyproject.toml'} has none")
        origin = resolve(version, str(self.store.path), self.store.versions(), checkout, self.tags())
        artifact = self.store.artifact(version) if origin == "store" else None
        warning = self.check_source(version, artifact) if artifact else None
        build = artifact is None or any(self.lacks(artifact))
        if build and not check_mode:
            if artifact is None:
                artifact = self.new(version, origin)
            else:
                with self.store.workshop() as workshop:
                    self.complete(artifact, self.store.path / version, workshop)
        told = {"changed": build, "built": build and not check_mode, "version": version, "origin": origin, "artifact": artifact}
        if warning:
            told["warnings"] = [warning]
        if self.params["extra"]:
            made = self.make_extra(version, self.params["extra"], artifact, check_mode)
            told.update(changed=build or made, extra_directory=str(self.extra_directory(version, self.params["extra"])))
        return {**told, **self.paths(version, artifact or {})}

    def extra_directory(self, version: str, extra: str) -> Path:
        """Where a version's wheels lie together with those of one of its extras."""
        return self.store.path / extra / version

    def make_extra(self, version: str, extra: str, artifact: Optional[Mapping[str, Any]], check_mode: bool) -> bool:
        """Make sure that they are there; gives whether they had to be made."""
        directory = self.extra_directory(version, extra)
        lacking = [python for python in self.pythons if not (directory / f"wheels-py{python}").is_dir()]
        if check_mode or not lacking or artifact is None:
            return bool(lacking)
        home = self.store.path / version
        lock = home / f"requirements-{extra}.txt"
        if not lock.is_file():
            raise ArtifactError(
                f"version {version} in {self.store.path} was built without {lock.name}, so it has no {extra}:"
                f" name a later version, or remove {home} to have it built again"
            )
        with self.store.workshop() as workshop:
            part = workshop / extra
            part.mkdir()
            os.link(lock, part / "requirements.txt")
            os.link(home / artifact["wheel"], part / artifact["wheel"])
            for python in self.pythons:
                self.make_wheels(part / "requirements.txt", python, part / f"wheels-py{python}")
            directory.parent.mkdir(exist_ok=True)
            # Those of versions that are no longer kept go with them.
            for old in directory.parent.iterdir():
                if old == directory or old.name not in self.store.versions():
                    shutil.rmtree(old)
            part.rename(directory)
        return True

    def paths(self, version: str, artifact: Mapping[str, Any]) -> dict[str, Any]:
        """Where the parts of a version are."""
        path = self.store.path / version
        pythons = [python for python in self.pythons if python in artifact.get("python_versions", [])]
        if artifact.get("image_manifest"):
            read_image(path / "image")
        wheel_sha256 = artifact.get("wheel_sha256")
        return {
            "directory": str(path),
            "image": artifact.get("image") or (f"sha256:{wheel_sha256}" if wheel_sha256 else None),
            "image_manifest": artifact.get("image_manifest"),
            "image_dir": str(path / "image"),
            "wheel": str(path / artifact["wheel"]) if artifact else None,
            "wheel_sha256": wheel_sha256,
            "wheels_dirs": {python: str(path / f"wheels-py{python}") for python in pythons},
            "requirements": str(path / "requirements.txt"),
        }


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "read"], "default": "present"},
            "version": {"type": "str"},
            "store": {"type": "path", "required": True},
            "source": {"type": "path", "required": True},
            "app_dir": {"type": "str", "default": "app"},
            "base_image": {"type": "str"},
            "build_image": {"type": "bool", "default": True},
            "image_python": {"type": "str", "default": "3.13"},
            "python_versions": {"type": "list", "elements": "str", "default": ["3.13"]},
            "platforms": {"type": "list", "elements": "str", "default": []},
            "extra": {"type": "str", "default": ""},
            "changed_source": {"type": "str", "choices": ["fail", "warn"], "default": "fail"},
            "docker": {"type": "str", "default": "docker"},
        },
        supports_check_mode=True,
    )
    store = Store(Path(module.params["store"]).absolute())
    try:
        build = Build(module.params, store)
        result: dict[str, Any] = {"changed": False, "version": module.params["version"]}
        if module.params["state"] == "present":
            result = build.present(module.check_mode)
        result.update(versions=store.versions(), checkout_version=version_of(build.app))
    except (ArtifactError, ImageError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
