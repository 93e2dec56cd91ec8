"""Messages for people, from notices: mail, Slack, SMS, speech. Nothing that a notice says can become
markup, a header, or an instruction to whoever carries it."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence
from dataclasses import dataclass

from trading_bot.notify.notice import EVENT, FIRING, RESOLVED, Notice
from trading_bot.notify.words import WORDS, detail_of, title_of

_GSM = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_TWICE = frozenset("^{}\\[~]|€")
TWO_SEGMENTS = (306, 134)
"""Characters of two segments: of the alphabet that all phones have, and of any (GSM 03.38, two times 153
and 67)."""
SLACK_BLOCK = 2900
"""Characters of one block; Slack takes 3,000, and 50 blocks."""
MOST = 50
"""How many notices one mail or one post names."""
_SPOKEN = 3
_EMOJI = {"critical": ":red_circle:", "warning": ":large_orange_circle:", "info": ":large_blue_circle:"}


@dataclass(frozen=True)
class Told:
    """A notice as it is told. ``still``: it was told before. ``escalated``: those who were told first did
    not acknowledge it."""

    notice: Notice
    still: bool = False
    escalated: bool = False


@dataclass(frozen=True)
class Message:
    """What goes out together. ``reference`` is its name, by which a provider's list is searched;
    ``acknowledge`` a link, or nothing; ``doubtful``: it may have arrived already."""

    told: Sequence[Told]
    reference: str
    acknowledge: str = ""
    doubtful: bool = False


@dataclass(frozen=True)
class Mail:
    subject: str
    plain: str
    html: str


class Writer:
    """Writes messages in one language."""

    def __init__(self, language: str) -> None:
        self._language = language
        self._words = WORDS[language]

    def _title(self, told: Told) -> str:
        notice = told.notice
        title = title_of(self._language, notice.rule, notice.title)
        return f"{title} ({notice.where})" if notice.where and notice.where not in title else title

    def _state(self, told: Told) -> str:
        return self._words["still" if told.still else told.notice.state]

    def _headline(self, message: Message) -> str:
        first = message.told[0]
        line = f"[{self._state(first)} · {self._words[first.notice.severity]}] {self._title(first)}"
        more = len(message.told) - 1
        return self._words["and"].format(title=line, count=more) if more else line

    def _lines(self, told: Told) -> list[tuple[str, str]]:
        """What a person has to know of it, each with its name."""
        notice, words = told.notice, self._words
        when = {FIRING: "since", EVENT: "at"}.get(notice.state, "until")
        lines = [(words["where"], notice.where), (words[when], _moment(notice.at))]
        if notice.value:
            lines.append((words["value"], notice.value))
        if notice.threshold:
            lines.append((words["threshold"], notice.threshold))
        lines += [(detail_of(self._language, name), value) for name, value in notice.details]
        lines += [(words["todo"], notice.runbook), (words["plot"], notice.plot)]
        return [(name, value) for name, value in lines if value]

    def mail(self, message: Message) -> Mail:
        """A subject of one line, the text, and the same as HTML without anything to load."""
        plain, rich = [], []
        if message.doubtful:
            plain.append(f"({self._words['repetition']})\n")
            rich.append(f"<p><em>{html.escape(self._words['repetition'])}</em></p>")
        for told in message.told:
            note = f" – {self._words['escalated']}" if told.escalated else ""
            head = f"[{self._state(told)} · {self._words[told.notice.severity]}] {self._title(told)}{note}"
            lines = self._lines(told)
            plain.append("\n".join([head, *(f"  {name}: {value}" for name, value in lines)]) + "\n")
            rows = "".join(
                f"<tr><th align=left>{html.escape(n)}</th><td>{_linked(v)}</td></tr>" for n, v in lines
            )
            rich.append(f"<h3>{html.escape(head)}</h3><table>{rows}</table>")
        if message.acknowledge:
            plain.append(f"{self._words['acknowledge']}: {message.acknowledge}\n")
            rich.append(f"<p>{html.escape(self._words['acknowledge'])}: {_linked(message.acknowledge)}</p>")
        plain.append(f"{self._words['reference']}: {message.reference}")
        return Mail(
            self._headline(message)[:250], "\n".join(plain), f"<html><body>{''.join(rich)}</body></html>"
        )

    def slack(self, message: Message) -> dict[str, object]:
        """The payload of an incoming webhook: what is shown where blocks are not, and the blocks."""
        parts = []
        for told in message.told:
            note = f" – {self._words['escalated']}" if told.escalated else ""
            sign = ":white_check_mark:" if told.notice.state == RESOLVED else _EMOJI[told.notice.severity]
            head = f"{sign} *{_mrkdwn(self._state(told))} · {_mrkdwn(self._title(told))}*{note}"
            parts.append(
                "\n".join([head, *(f"{_mrkdwn(n)}: {self._slack_value(n, v)}" for n, v in self._lines(told))])
            )
        tail = [f"{self._words['reference']}: {message.reference}"]
        if message.acknowledge:
            tail.insert(0, f"<{message.acknowledge}|{self._words['acknowledge']}>")
        if message.doubtful:
            tail.insert(0, f"_{self._words['repetition']}_")
        texts = [*_folded(parts), "  ".join(tail)]
        return {
            "text": _mrkdwn(self._headline(message)),
            "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": text}} for text in texts],
            "unfurl_links": False,
        }

    def _slack_value(self, name: str, value: str) -> str:
        # Only what the notifier itself took for a link is one; no format mark may come into its address.
        if name in (self._words["todo"], self._words["plot"]) and "://" in value:
            return f"<{_escaped(value).replace('|', '%7C')}>"
        return _mrkdwn(value)

    def fits_sms(self, told: Sequence[Told]) -> int:
        """How many of these, from the first on, an SMS has room for; at least one."""
        longest = Message(told[:1], "0" * 8, "")
        for count in range(2, len(told) + 1):
            message = Message(told[:count], "0" * 8, "")
            if not self._fits(self._sms(message, cut=False)):
                break
            longest = message
        return len(longest.told)

    def sms(self, message: Message) -> str:
        """At most two segments; each notice by its title, and the reference by which it is found again."""
        text = self._sms(message, cut=True)
        if message.acknowledge:
            linked = f"{text} {message.acknowledge}"
            return linked if self._fits(linked) else text
        return text

    def _sms(self, message: Message, *, cut: bool) -> str:
        end = f" [{message.reference}]"
        heads: list[str] = []
        state = ""
        for told in message.told:
            tag = f"{self._state(told)} {self._words[told.notice.severity]}"
            heads.append(self._title(told) if tag == state else f"{tag}: {self._title(told)}")
            state = tag
        text = "; ".join(heads)
        while cut and text and not self._fits(text + end):
            text = text[:-4] + "..."
        return text + end

    @staticmethod
    def _fits(text: str) -> bool:
        plain = all(c in _GSM or c in _GSM_TWICE for c in text)
        length = (
            len(text) + sum(c in _GSM_TWICE for c in text) if plain else len(text.encode("utf-16-le")) // 2
        )
        return length <= TWO_SEGMENTS[0 if plain else 1]

    def speech(self, message: Message) -> str:
        """What is said on the phone, as TwiML, twice."""
        titles = ". ".join(self._title(told) for told in message.told[:_SPOKEN])
        said = self._words["speech"].format(count=len(message.told), titles=titles)
        language = "zh-CN" if self._language == "zh" else "en-US"
        say = f'<Say language="{language}">{html.escape(said)}</Say>'
        return f'<Response>{say}<Pause length="1"/>{say}</Response>'


def _folded(parts: Sequence[str]) -> list[str]:
    """The parts, each whole, as few texts that a block takes."""
    texts: list[str] = []
    for whole in parts:
        part = whole if len(whole) <= SLACK_BLOCK else whole[: SLACK_BLOCK - 1] + "…"
        if texts and len(texts[-1]) + len(part) + 2 <= SLACK_BLOCK:
            texts[-1] += "\n\n" + part
        else:
            texts.append(part)
    return texts


def _mrkdwn(text: str) -> str:
    """As Slack asks: & < > escaped, so that nothing is a link or a mention; and no mark begins a format."""
    return "".join(f"{c}\u2060" if c in "*_~`" else c for c in _escaped(text))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _linked(text: str) -> str:
    shown = html.escape(text)
    return f'<a href="{shown}">{shown}</a>' if text.startswith(("http://", "https://")) else shown


def _moment(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(max(0.0, min(at, 4e9))))
