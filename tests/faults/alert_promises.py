"""What is promised about alerts, checked on what phones report: nothing lost, no silent gap, in order, once on screen.

Phones report everything that they see (``Report``), in the order in which they see it; the raiser reports what it was
told. ``Judge`` keeps each phone's screen as a correct client would and counts what must never happen. Nothing here
waits or knows of faults.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

#: What stands in ``Verdict``, in words.
VERDICTS: Final = ("lost", "silent_gaps", "order", "duplicates")
#: Broken promises of which the words are kept; the counts go on.
MAX_TOLD: Final = 40


class Came(msgspec.Struct, frozen=True, array_like=True, tag="came"):
    """A phone has its welcome. ``stood_at``: the position it came with; None: it had none. ``open``: the alerts of the
    snapshot, as id and words, where it did not resume. ``at``: seconds of the machine's monotonic clock."""

    phone: str
    at: float
    stood_at: int | None
    resumed: bool
    gap_reason: str | None
    alert_seq: int
    open: tuple[tuple[str, str], ...]


class Got(msgspec.Struct, frozen=True, array_like=True, tag="got"):
    """A phone was sent an event. ``digest``: of the frame's bytes."""

    phone: str
    at: float
    alert_seq: int
    digest: int
    event: str
    alert_id: str
    words: str


class Went(msgspec.Struct, frozen=True, array_like=True, tag="went"):
    """A phone's connection has ended, by whomever."""

    phone: str
    at: float
    why: str


Report = Came | Got | Went


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How often each promise was broken. ``lost``: per alert and phone."""

    lost: int = 0
    silent_gaps: int = 0
    order: int = 0
    duplicates: int = 0

    @property
    def is_kept(self) -> bool:
        return not (self.lost or self.silent_gaps or self.order or self.duplicates)


class _Accepted(msgspec.Struct, kw_only=True):
    alert_id: str
    alert_seq: int | None
    is_closed: bool = False


class _Screen:
    """One phone as its person sees it."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.is_here = False
        #: How it came last: where it stood, resumed or why not, and how many alerts it was shown.
        self.came = "never"
        #: The last position of which this connection was sent an event or stood at when it came.
        self.last_sent = 0
        #: Words to the alert that showed them, ever; and what is shown now.
        self.ever: dict[str, str] = {}
        self.shown: set[str] = set()
        #: How often it has begun anew, with a snapshot.
        self.begun = 0
        #: Gaps that the phone was told of: from, to (both included), why.
        self.told: list[tuple[int, int, str]] = []


class Judge:
    """Keeps the screens of some phones and counts broken promises.

    One line of an alert's ``content`` is one raise: its words are used for no other.
    """

    def __init__(self, phones: Iterable[str]) -> None:
        self._screens = {phone: _Screen() for phone in phones}
        self._counts: Counter[str] = Counter()
        self._digests: dict[int, int] = {}
        #: Which raise each number belongs to, by what phones were shown.
        self._words_at: dict[int, str] = {}
        self._raised_at: dict[str, int] = {}
        self._accepted: dict[str, _Accepted] = {}
        self._settled = 0
        self._highest = 0
        self.told: list[str] = []
        #: What a user sees and no promise forbids: gaps told aloud by reason, and repeats a phone has passed over.
        self.seen: Counter[str] = Counter()

    @property
    def verdict(self) -> Verdict:
        return Verdict(**{name: self._counts[name] for name in VERDICTS})

    @property
    def accepted_count(self) -> int:
        """How many alerts were accepted so far."""
        return self._settled + len(self._accepted)

    @property
    def unsettled_count(self) -> int:
        """How many of these have not been judged: none is lost before ``settle`` was told that nothing more comes."""
        return len(self._accepted)

    @property
    def highest(self) -> int:
        """The highest number that was accepted; what is raised from now on has a higher one."""
        return self._highest

    @property
    def events(self) -> int:
        """How many different events were seen."""
        return len(self._digests)

    def position(self, phone: str) -> int | None:
        """Up to which number the phone has everything, or was told that it has not."""
        screen = self._screens[phone]
        return screen.position if screen.is_here else None

    def begun(self, phone: str) -> int:
        """How often the phone has begun anew."""
        return self._screens[phone].begun

    def shows(self, phone: str, words: str) -> bool:
        """Whether an alert is on the phone's screen now."""
        return words in self._screens[phone].shown

    def _broken(self, promise: str, words: str, count: int = 1) -> None:
        self._counts[promise] += count
        if len(self.told) < MAX_TOLD:
            self.told.append(f"{promise}: {words}")

    # --- what phones report ---

    def take(self, report: Report) -> None:
        """One report; those of one phone come in their order."""
        screen = self._screens.get(report.phone)
        if screen is None:
            return
        match report:
            case Went():
                screen.is_here = False
                self.seen[f"went {report.why}"] += 1
            case Came():
                self._came(screen, report)
            case Got():
                self._got(screen, report)

    def _came(self, screen: _Screen, came: Came) -> None:
        screen.is_here = True
        anew = f"anew for {came.gap_reason} at {came.alert_seq} with {len(came.open)} open"
        how = "resumed" if came.resumed else anew
        screen.came = f"from {came.stood_at} {how}"
        if came.resumed:
            if screen.position is None or came.stood_at != screen.position or came.alert_seq < screen.position:
                self._broken(
                    "order", f"{came.phone} at {screen.position} resumed at {came.stood_at} of {came.alert_seq}"
                )
            screen.last_sent = screen.position or 0
            return
        before = screen.position
        if came.gap_reason is None:
            self._broken(
                "silent_gaps", f"{came.phone} at {before} begins anew at {came.alert_seq}, and is not told why"
            )
        if before is not None:
            self.seen[f"gap told: {came.gap_reason}"] += 1
            screen.told.append((before + 1, came.alert_seq, came.gap_reason or ""))
        screen.begun += 1
        screen.position = screen.last_sent = came.alert_seq
        # The snapshot takes the place of everything that was shown.
        screen.shown.clear()
        for alert_id, content in came.open:
            for words in content.split("\n"):
                self._show(came.phone, screen, words, alert_id)

    def _got(self, screen: _Screen, got: Got) -> None:
        if got.alert_seq <= screen.last_sent:
            # The server sends a connection each event once, in order. The phone shows it once all the same.
            self._broken("order", f"{got.phone} was sent {got.alert_seq} after {screen.last_sent}")
            return
        screen.last_sent = got.alert_seq
        known = self._digests.setdefault(got.alert_seq, got.digest)
        if known != got.digest:
            self._broken("order", f"{got.phone} has another event under {got.alert_seq} than other phones")
        if screen.position is None or got.alert_seq != screen.position + 1:
            # A correct phone does not show it, and reconnects from where it stands.
            self._broken("silent_gaps", f"{got.phone} at {screen.position} was sent {got.alert_seq}")
            return
        screen.position = got.alert_seq
        if got.event in ("raised", "joined"):
            lines = got.words.split("\n")
            for words in lines if got.event == "raised" else lines[-1:]:
                self._words_at.setdefault(got.alert_seq, words)
                if got.event == "raised" and self._raised_at.setdefault(words, got.alert_seq) != got.alert_seq:
                    self._broken("duplicates", f"{words!r} is raised as {self._raised_at[words]} and {got.alert_seq}")
                self._show(got.phone, screen, words, got.alert_id)

    def _show(self, phone: str, screen: _Screen, words: str, alert_id: str) -> None:
        """Put an alert's words on the screen; the same words of another alert are one call that rings twice."""
        first = screen.ever.setdefault(words, alert_id)
        if first != alert_id:
            self._broken("duplicates", f"{phone} shows {words!r} as {first} and as {alert_id}")
        screen.shown.add(words)

    # --- what the raiser was told ---

    def accepted(self, words: str, alert_id: str, alert_seq: int | None, *, above: int) -> None:
        """An alert was accepted. ``above``: the highest number that was accepted before it was first sent."""
        if alert_seq is not None:
            if alert_seq <= above:
                self._broken("order", f"{words!r} is number {alert_seq}, and {above} was accepted before it was raised")
            self._highest = max(self._highest, alert_seq)
        self._accepted[words] = _Accepted(alert_id=alert_id, alert_seq=alert_seq)

    def closed(self, alert_id: str) -> None:
        """The alert was ended on purpose: a phone that begins anew is not shown it."""
        for each in self._accepted.values():
            if each.alert_id == alert_id:
                each.is_closed = True

    # --- whether everybody has everything ---

    def missing(self, phones: Iterable[str] | None = None) -> dict[str, list[str]]:
        """Accepted alerts that phones do not show, by words; those since the last ``settle``."""
        found: dict[str, list[str]] = {}
        names = list(self._screens if phones is None else phones)
        for words, accepted in self._accepted.items():
            lacking = [name for name in names if not self._has(self._screens[name], words, accepted)]
            if lacking:
                found[words] = lacking
        return found

    @staticmethod
    def _has(screen: _Screen, words: str, accepted: _Accepted) -> bool:
        if words in screen.shown:
            return True
        # Ended and forgotten by retention while the phone was away, and the phone says so.
        return accepted.is_closed and any(
            why == "too_far" and (accepted.alert_seq is None or first <= accepted.alert_seq <= last)
            for first, last, why in screen.told
        )

    def _where(self, name: str) -> str:
        """Where a phone stands, and where it was when it last came: what tells a late alert from a lost one."""
        screen = self._screens[name]
        here = "" if screen.is_here else ", not here"
        return f"{screen.position} (came {screen.came}{here})"

    def settle(self) -> None:
        """Nothing more is waited for: what is missing now is lost, and what phones show must be what was accepted."""
        for words, phones in self.missing().items():
            accepted = self._accepted[words]
            where = ", ".join(f"{name} at {self._where(name)}" for name in phones[:3])
            self._broken(
                "lost",
                f"{words!r} was accepted as {accepted.alert_id}, number {accepted.alert_seq}, and {len(phones)} phones"
                f" lack it: {where}",
                len(phones),
            )
        for words, accepted in self._accepted.items():
            shown = None if accepted.alert_seq is None else self._words_at.get(accepted.alert_seq)
            if shown is not None and shown != words:
                self._broken("order", f"{words!r} was accepted as {accepted.alert_seq}, which is {shown!r}")
            for phone, screen in self._screens.items():
                if screen.ever.get(words, accepted.alert_id) != accepted.alert_id:
                    self._broken("duplicates", f"{phone} shows {words!r} as another alert than was accepted")
        self._settled += len(self._accepted)
        self._accepted.clear()
        for screen in self._screens.values():
            screen.told.clear()

    def open_alerts(self) -> list[str]:
        """The ids of accepted alerts since the last ``settle`` that were not ended."""
        return [each.alert_id for each in self._accepted.values() if not each.is_closed]
