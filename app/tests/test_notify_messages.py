"""What a message says cannot become anything else than text; and whatever comes in, nothing else is lost."""

from __future__ import annotations

import json
import ssl
import string
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from notify_servers import MAIL_PASSWORD, MAIL_USER, Servers
from test_notify import Notifier, alert, webhook
from trading_bot.errors import ConfigError, Malformed
from trading_bot.notify import settings as notify_settings
from trading_bot.notify.channels import MailChannel
from trading_bot.notify.notice import FIRING, Notice, from_alertmanager, from_ledger, from_release
from trading_bot.notify.store import Batch
from trading_bot.notify.text import SLACK_BLOCK, TWO_SEGMENTS, Message, Told, Writer

from servers import until

ANY = st.text(st.characters(codec="utf-8"), max_size=400)
HOSTILE = [
    "x\r\nBcc: thief@example.com",
    "x\nSubject: other",
    "<!channel> pay now",
    "<https://evil.example.com|your bank>",
    "<@U123>",
    "</Say><Dial>+15550001</Dial><Say>",
    "<script>alert(1)</script>",
    '" onclick="x',
    "*bold* _it_ `code`",
    "\u2028\u202e\x00\x1b[31m",
]


def hostile(text: str) -> Notice:
    """An alert in which all that another chooses is this."""
    one = alert(severity="critical")
    one["labels"].update(alertname=f"A{text}", host=text, account=text)
    one["annotations"].update(summary=text, value=text, threshold=text, runbook_url=text)
    one["generatorURL"] = text
    return from_alertmanager(json.dumps(webhook(one)).encode())[0]


def message(*notices: Notice, doubtful: bool = False) -> Message:
    told = [Told(notice) for notice in notices]
    return Message(told, "0123abcd", "http://mon1:9095/ack/0123abcd.signature", doubtful)


def mail_of(notice: Notice, language: str = "en") -> Any:
    channel = MailChannel(notify_settings.Mail(host="x", sender="alerts@example.com"), Writer(language))
    told = [Told(notice)]
    return channel.message(
        Batch("0123abcd", "email", "desk@example.com", told, 1, False, 0.0), message(notice)
    )


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_text_of_an_alert_is_no_header_no_markup_and_no_instruction(text: str, language: str) -> None:
    notice, writer = hostile(text), Writer(language)
    mail = mail_of(notice, language)
    assert mail["To"] == "desk@example.com"
    assert set(mail.keys()) == {
        *("Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"),
    }
    assert b"\nBcc:" not in mail.as_bytes()
    rich = mail.get_body(("html",)).get_content()
    assert "<script" not in rich
    assert 'href="x' not in rich
    assert " onclick=" not in rich.replace("&quot; onclick=", "")
    post = json.dumps(writer.slack(message(notice)), ensure_ascii=False)
    for token in ("<!channel>", "<@U123>", "<https://evil.example.com|"):
        assert token not in post
    speech = ElementTree.fromstring(writer.speech(message(notice)))
    assert [each.tag for each in speech] == ["Say", "Pause", "Say"]
    assert "\n" not in writer.sms(message(notice))


@settings(deadline=None)
@given(ANY, ANY, st.sampled_from(["en", "zh"]))
def test_whatever_an_alert_says_each_message_fits_its_channel(one: str, other: str, language: str) -> None:
    writer = Writer(language)
    many = message(*[hostile(one), hostile(other)] * 10)
    few = Message(many.told[: writer.fits_sms(many.told)], many.reference, many.acknowledge)
    text = writer.sms(few)
    plain = all(c in string.printable for c in text)
    assert len(text.encode("utf-16-le")) // 2 <= TWO_SEGMENTS[0 if plain else 1] or not plain
    assert len(text.encode("utf-16-le")) // 2 <= TWO_SEGMENTS[0]
    assert "[0123abcd]" in text
    post = writer.slack(many)
    blocks = post["blocks"]
    assert isinstance(blocks, list)
    assert len(blocks) <= 50
    assert all(0 < len(block["text"]["text"]) <= SLACK_BLOCK for block in blocks)
    ElementTree.fromstring(writer.speech(many))
    assert len(writer.mail(many).subject) <= 250
    mail_of(hostile(one), language).as_bytes()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | ANY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY, inner, max_size=4),
    max_leaves=12,
)
KEYS = ("status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint")


@st.composite
def broken(draw: st.DrawFn, good: dict[str, Any]) -> bytes:
    """A good message with something in it replaced, taken out, or cut off; or no JSON at all."""
    if draw(st.booleans()):
        return draw(st.binary(max_size=200))
    made = json.loads(json.dumps(good))
    inner = made["alerts"][0] if "alerts" in made else made
    key = draw(st.sampled_from([*inner, "alerts"]))
    target = made if key == "alerts" else inner
    if draw(st.booleans()):
        target.pop(key, None)
    else:
        target[key] = draw(JSON)
    text = json.dumps(made).encode()
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


LEDGER = {
    "schema": 1,
    "rule": "limit_hit",
    "severity": "warning",
    "account": "a",
    "message": "m",
    "at": 1,
    "limit": "1",
}
RELEASE = {"event": "fail", "rollout": "r", "to": "1.4.0", "reasons": ["x"], "at": "2026-11-27T10:00:00Z"}


@settings(deadline=None)
@given(broken(webhook(alert())), broken(LEDGER), broken(RELEASE))
def test_what_is_no_alert_is_refused_with_a_reason_and_nothing_else_happens(
    hook: bytes, line: bytes, notice: bytes
) -> None:
    for read in (
        lambda: from_alertmanager(hook),
        lambda: [from_ledger("1-1", line)],
        lambda: [from_release(notice)],
    ):
        made, said = [], []
        try:
            made = read()
        except Malformed as error:
            said = list(error.errors.values())
        assert all(len(text) > 3 for text in said)
        for notice_made in made:
            assert notice_made.severity in ("info", "warning", "critical")
            Writer("en").mail(message(notice_made))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Notifier, Servers]]:
    servers = Servers()
    notifier = Notifier(tmp_path_factory.mktemp("notifier"), servers)
    notifier.start()
    yield notifier, servers
    notifier.kill()
    servers.stop()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        ["/api/alerts", "/api/notices", "/api/silences", "/api/acknowledgements", "/ack/x", "/api/silences/9"]
    ),
    st.sampled_from(["POST", "PUT", "GET", "DELETE"]),
    broken(webhook(alert())),
)
def test_a_running_notifier_survives_any_request(running: Any, path: str, method: str, body: bytes) -> None:
    notifier, _ = running
    status, answer = notifier.ask(method, path, body)
    assert status in (200, 400, 404, 405)
    if status != 200:
        assert answer["title"]


def test_and_the_next_good_alert_is_told(running: tuple[Notifier, Servers]) -> None:
    notifier, servers = running
    assert notifier.ask("POST", "/api/alerts", b"[" * 100_000)[0] == 400
    assert notifier.ask("POST", "/api/alerts", b" " * (4 * 1024 * 1024 + 1))[0] == 413
    assert notifier.ask("POST", "/api/alerts", webhook(alert()), token="another")[0] == 401
    assert notifier.ask("POST", "/api/alerts", webhook(alert()), token=None)[0] == 401
    notifier.alert(alert("Good"))
    until(lambda: any("Good" in each["text"] for each in servers.of("sms")), 10)


def test_mail_goes_out_over_tls_after_a_login(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    servers = Servers(tls=context)
    (tmp_path / "mail").write_text(MAIL_PASSWORD)
    notifier = Notifier(
        tmp_path / "n",
        servers,
        email={
            "host": "localhost",
            "port": servers.mail_port,
            "sender": "alerts@example.com",
            "security": "starttls",
            "user": MAIL_USER,
            "password_file": str(tmp_path / "mail"),
            "ca_file": str(cert),
        },
        retry_longest=0.2,
    )
    try:
        notifier.start()
        (tmp_path / "mail").write_text("wrong")
        notifier.alert(alert(severity="warning"))
        until(lambda: "login refused" in notifier.log.read_text(), 10)
        assert servers.of("email") == []
        (tmp_path / "mail").write_text(MAIL_PASSWORD)
        notifier.kill()
        notifier.start()
        # Sixty seconds after a refused login; another alert goes at once.
        notifier.alert(alert("Other", severity="warning"))
        until(lambda: servers.of("email"), 10)
    finally:
        notifier.kill()
        servers.stop()


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of localhost that vouches for itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "cert.pem", directory / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    paths[1].write_bytes(key.private_bytes(*form))
    return paths


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: [", "line 1"),
        ("language: en", "missing required field `server`"),
        ("extra: 1", "unknown field"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        notify_settings.parse("n.yaml", text.encode())


def test_everything_that_is_wrong_with_contacts_and_routes_is_said(tmp_path: Path) -> None:
    servers = Servers()
    notifier = Notifier(
        tmp_path,
        servers,
        contacts=[
            {"name": "desk", "email": ["a@x\r\nBcc: b@y"], "sms": ["0170"], "slack": ["none"], "call": []}
        ],
        routes={"info": ["pager"], "warning": []},
    )
    servers.stop()
    with pytest.raises(ConfigError) as found:
        notify_settings.load(str(notifier.config))
    assert {issue.key for issue in found.value.issues} == {
        "contacts[0].email",
        "contacts[0].sms and .call",
        "contacts[0].slack",
        "routes.info",
        "routes.critical",
    }


def test_a_notice_is_what_it_was_made_from() -> None:
    notice = hostile("plain")
    assert (notice.state, notice.severity, notice.where, notice.value) == (
        FIRING,
        "critical",
        "plain",
        "plain",
    )
