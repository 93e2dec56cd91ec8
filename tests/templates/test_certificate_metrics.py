"""What the node exporter is told of certificates."""

from __future__ import annotations

import calendar
import re
import subprocess
import time
from pathlib import Path

from real_servers import program
from rendering import ROLES

PROGRAM = ROLES / "node_exporter" / "files" / "certificate-metrics.sh"


def told(place: Path, *certificates: Path) -> dict[str, int]:
    """The end of each certificate, as promtool finds it in order."""
    file = place / "certificates.prom"
    subprocess.run(["sh", PROGRAM, file, *certificates], check=True, stderr=subprocess.DEVNULL)
    text = file.read_text()
    subprocess.run([program("promtool"), "check", "metrics"], input=text, text=True, check=True, capture_output=True)
    return {path: int(end) for path, end in re.findall(r'^\w+\{path="(.*)"\} (\d+)$', text, re.MULTILINE)}


def test_each_certificate_tells_when_it_ends_and_one_that_cannot_be_read_has_ended(tmp_path: Path) -> None:
    certificate = tmp_path / "api.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "30", "-subj", "/CN=api"]
    subprocess.run([*made, "-keyout", tmp_path / "key.pem", "-out", certificate], check=True, capture_output=True)
    asked = ["openssl", "x509", "-noout", "-enddate", "-in", str(certificate)]
    shown = subprocess.run(asked, capture_output=True, text=True, check=True)
    end = calendar.timegm(time.strptime(shown.stdout.strip().removeprefix("notAfter="), "%b %d %H:%M:%S %Y GMT"))
    missing = tmp_path / "missing.pem"
    assert told(tmp_path, certificate, missing) == {str(certificate): end, str(missing): 0}


def test_a_host_without_certificates_tells_of_none(tmp_path: Path) -> None:
    assert told(tmp_path) == {}
