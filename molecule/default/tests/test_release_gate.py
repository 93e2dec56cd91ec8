"""An image is written down where it served, and is let in elsewhere only after that."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

from conftest import ROOT, STATE, Fleet


def required(*environments: str) -> tuple[str, ...]:
    """What production asks for, on the command line."""
    return ("-e", json.dumps({"release_environment": "production", "release_requires": environments}))


def test_what_serves_is_written_beside_its_image(fleet: Fleet) -> None:
    version = fleet.served()[0].rpartition("-")[0]
    deployed = fleet.play("deploy.yml", "-e", "release_environment=test")
    assert deployed.code == 0, deployed.output
    let_in = fleet.play("release-gate.yml", "-e", f"release_version={version}", *required("test"))
    assert let_in.code == 0, let_in.output
    assert f"{version} may be brought out in production" in let_in.output
    kept_out = fleet.play("release-gate.yml", "-e", f"release_version={version}", *required("test", "staging"))
    assert kept_out.code != 0
    assert "staging: this image was not brought out there" in kept_out.output
    assert "test: this image" not in kept_out.output
    asked = fleet.play("release-gate.yml", "--check", "-e", f"release_version={version}", *required("test", "staging"))
    assert asked.code == 0, asked.output
    assert "staging: this image was not brought out there" in asked.output


def test_an_image_that_was_tried_nowhere_is_neither_built_nor_let_in(fleet: Fleet, source: Callable[..., Path]) -> None:
    before, home = fleet.status(), source("0.3.7")
    asked = ("-e", "release_version=0.3.7", "-e", f"release_source={home}", *required("test"))
    unbuilt = fleet.play("deploy.yml", *asked)
    assert unbuilt.code != 0
    assert "has no version 0.3.7" in unbuilt.output
    assert sum(unbuilt.changed.values()) == 0

    wanted = {"version": "0.3.7", "store": str(STATE / "releases"), "source": str(home), "build_image": False}
    build = ["ansible", "localhost", "-m", "release_build", "-a", json.dumps(wanted)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    refused = fleet.play("deploy.yml", *asked)
    assert refused.code != 0
    assert "0.3.7 is not let into production, nothing was changed" in refused.output
    assert fleet.status() == before
