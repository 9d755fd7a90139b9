"""``chatd drill``: raise a marked exercise on the running ``chatd up``, tell when each person had it, and call it off.

The drill goes the way of every alert. The moments are the server's: when its gateways heard each phone say
``delivered`` and ``displayed``, and took its ``accept``, after the alert was raised. Nothing is told of what it says.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final
from urllib.parse import quote

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from chatd.alerts.model import CLOSED
from chatd.places import Places
from chatd.raising import Line, NotRaised, Raised, new_key

EVERYBODY: Final = 0
SOMEBODY_DID_NOT: Final = 1
NOT_DRILLED: Final = 2

SENDER: Final = "service:chatd-drill"
#: On phones of both languages; each shows the mark of a drill beside it.
TEXT: Final = "Drill: please accept. · Exercício: por favor, aceite."
#: The gravest alert's way is the one to be sure of.
_PRIORITY: Final = "critical"
MOST_WAIT_S: Final = 600.0
#: Over the longest wait and the tries after it.
_TTL_S: Final = 900
_LOOK_EVERY_S: Final = 0.25
#: Phones' receipts are gathered and written at most so late; without this the last ones would be missing.
_LATE_S: Final = 1.5
#: More names than this are no picture; then the shares alone are.
_MOST_NAMES: Final = 40

STEPS: Final = ("delivered", "displayed", "accepted")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One person. ``reach``: ``online``, ``push`` or ``unreachable`` when it was raised; ``other``: came to it later,
    or has a phone of the department that it does not call. Milliseconds after the raise; None: not yet."""

    user_id: str
    reach: str
    answer: str = "addressed"
    delivered_ms: int | None = None
    displayed_ms: int | None = None
    accepted_ms: int | None = None

    @property
    def is_reachable(self) -> bool:
        return self.reach in ("online", "push")

    @property
    def has_answered(self) -> bool:
        return self.answer not in ("addressed", "delivered", "displayed")


class _Person(msgspec.Struct, frozen=True):
    user_id: str
    answer: str
    delivered_at: datetime | None = None
    displayed_at: datetime | None = None
    accepted_at: datetime | None = None


class Seen(msgspec.Struct, frozen=True):
    """What ``GET /v1/alerts/{alert_id}`` says, as far as a drill needs it."""

    state: str
    raised_at: datetime
    people: tuple[_Person, ...] = ()


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What a drill has shown. Medians and 99th percentiles are of those who did, of all who could be reached."""

    department: str
    alert_id: str
    raised_at: datetime | None
    is_whole: bool
    reachable: int
    delivered: int
    displayed: int
    accepted: int
    delivered_median_ms: int | None
    delivered_p99_ms: int | None
    people: tuple[Row, ...]
    missing: tuple[str, ...]


def rows_of(raised: Raised, seen: Seen | None) -> tuple[Row, ...]:
    """Everybody whom the alert called or who has it: who could be reached first, by name."""
    reach = raised.reach
    how = {user: name for name in ("unreachable", "push", "online") for user in getattr(reach, name)}
    people = {} if seen is None else {person.user_id: person for person in seen.people}
    order = ("online", "push", "unreachable", "other")
    rows = []
    for user_id in how.keys() | people.keys():
        person = people.get(user_id)
        if seen is None or person is None:
            rows.append(Row(user_id=user_id, reach=how[user_id]))
            continue
        # Who has shown or accepted it has it, whether or not the phone said so first.
        got = (person.delivered_at, person.displayed_at, person.accepted_at)
        first = min((moment for moment in got if moment is not None), default=None)
        rows.append(
            Row(
                user_id=user_id,
                reach=how.get(user_id, "other"),
                answer=person.answer,
                delivered_ms=_after(seen.raised_at, first),
                displayed_ms=_after(seen.raised_at, person.displayed_at),
                accepted_ms=_after(seen.raised_at, person.accepted_at),
            )
        )
    return tuple(sorted(rows, key=lambda row: (order.index(row.reach), row.user_id)))


def _after(raised_at: datetime, moment: datetime | None) -> int | None:
    """Milliseconds; two gateways' clocks may differ by some, and nothing comes before it was raised."""
    return None if moment is None else max(0, round((moment - raised_at).total_seconds() * 1000))


def is_over(rows: Sequence[Row], seen: Seen | None) -> bool:
    """Whether nothing is to be waited for: it is ended, or all who can be reached have shown it and answered."""
    if seen is not None and seen.state in CLOSED:
        return True
    reachable = [row for row in rows if row.is_reachable]
    return bool(reachable) and all(row.has_answered and row.displayed_ms is not None for row in reachable)


def figures_of(department: str, raised: Raised, seen: Seen | None) -> Figures:
    """What it has come to."""
    rows = rows_of(raised, seen)
    reachable = [row for row in rows if row.is_reachable]
    took = sorted(row.delivered_ms for row in reachable if row.delivered_ms is not None)
    return Figures(
        department=department,
        alert_id=raised.alert_id,
        raised_at=None if seen is None else seen.raised_at,
        is_whole=raised.reach.is_whole,
        reachable=len(reachable),
        delivered=len(took),
        displayed=sum(row.displayed_ms is not None for row in reachable),
        accepted=sum(row.accepted_ms is not None for row in reachable),
        delivered_median_ms=quantile(took, 0.5),
        delivered_p99_ms=quantile(took, 0.99),
        people=rows,
        missing=tuple(row.user_id for row in reachable if row.delivered_ms is None),
    )


def quantile(values: Sequence[int], share: float) -> int | None:
    """The least of the sorted ``values`` that ``share`` of them do not exceed; None of none."""
    return values[max(0, -(-round(len(values) * share * 100) // 100) - 1)] if values else None


def status_of(figures: Figures) -> int:
    """The exit status. Who cannot be reached fails no drill; one that could reach nobody, or whose reach nobody knew,
    has shown nothing and is no success."""
    whole = figures.is_whole and figures.reachable > 0 and not figures.missing
    return EVERYBODY if whole else SOMEBODY_DID_NOT


# --- the way there and back ---------------------------------------------------------------------------------


def drill(
    places: Places,
    department: str,
    *,
    text: str = TEXT,
    policy: str | None = None,
    wait_s: float = 60.0,
    as_json: bool = False,
    out: Path | None = None,
    token: str | None = None,
) -> int:
    """Raise, follow for at most ``wait_s``, call off, tell; returns the exit status.

    Ctrl-C and SIGTERM end the following and call the drill off; a second one ends at once, and it may ring on.
    """
    with _stopping() as stop:
        try:
            line = Line(places, department, sender=SENDER, token=token, ttl_s=_TTL_S)
            body = {
                "content": text,
                "priority": _PRIORITY,
                "requires_action": True,
                "policy": policy,
                "drill": True,
            }
            raised = line.raise_alert(body, key=new_key())
        except NotRaised as error:
            print(f"chatd drill: {error}", file=sys.stderr)
            return NOT_DRILLED
        seen: Seen | None = None
        try:
            seen = _follow(line, raised, wait_s, stop, _Screen(department, raised, quiet=as_json))
        finally:
            is_off = _stand_down(line, raised.alert_id)
    figures = figures_of(department, raised, seen)
    if as_json:
        print(msgspec.json.encode(figures).decode())
    else:
        _tell(figures)
    if out is not None:
        _write(figures, out)
    if not is_off:
        print(f"chatd drill: {raised.alert_id} could not be called off and may ring on", file=sys.stderr)
        return NOT_DRILLED
    if seen is None:
        print("chatd drill: the gateway did not say who has it", file=sys.stderr)
        return NOT_DRILLED
    return status_of(figures)


def _follow(line: Line, raised: Raised, wait_s: float, stop: threading.Event, screen: _Screen) -> Seen | None:
    """Look until it is over; what was seen last, None where the gateway never told."""
    seen: Seen | None = None
    end = time.monotonic() + wait_s
    with screen:
        while True:
            seen = _look(line, raised.alert_id) or seen
            rows = rows_of(raised, seen)
            screen.show(rows)
            if stop.is_set() or time.monotonic() >= end or is_over(rows, seen):
                break
            stop.wait(min(_LOOK_EVERY_S, max(0.0, end - time.monotonic())))
        if seen is not None and seen.state not in CLOSED and not is_over(rows, seen):
            time.sleep(_LATE_S)
            seen = _look(line, raised.alert_id) or seen
            screen.show(rows_of(raised, seen))
    return seen


def _look(line: Line, alert_id: str) -> Seen | None:
    status, raw = line.ask("GET", f"/v1/alerts/{quote(alert_id, safe='')}", tries=1)
    try:
        return msgspec.json.decode(raw, type=Seen) if status == 200 else None
    except msgspec.DecodeError:
        return None


def _stand_down(line: Line, alert_id: str) -> bool:
    """Whether the drill rings no more; it may have been ended by somebody before."""
    status, _ = line.ask("POST", f"/v1/alerts/{quote(alert_id, safe='')}/stand_down")
    return status in (200, 409)


@contextlib.contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first signal sets; the second one meets what was there before."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number in numbers:
            signal.signal(number, before[number])


# --- telling ------------------------------------------------------------------------------------------------


def shown(ms: int | None) -> str:
    """Milliseconds below a second, else seconds."""
    if ms is None:
        return "–"
    return f"{ms} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def table_of(department: str, rows: Sequence[Row]) -> Table:
    """Who has it, by name."""
    table = Table(title=f"drill, {department}")
    for head in ("who", "reach", *STEPS):
        table.add_column(head, justify="left" if head in ("who", "reach") else "right")
    for row in rows:
        table.add_row(row.user_id, row.reach, *(shown(getattr(row, f"{step}_ms")) for step in STEPS))
    return table


class _Screen:
    """The table while it changes; without a terminal a line for everything that happens; ``quiet``: nothing."""

    def __init__(self, department: str, raised: Raised, *, quiet: bool) -> None:
        self._department = department
        self._quiet = quiet
        self._told: set[tuple[str, str]] = set()
        console = Console()
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal and not quiet else None
        if not quiet:
            print(f"raised {raised.alert_id}, a drill")

    def __enter__(self) -> _Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, rows: Sequence[Row]) -> None:
        if self._live is not None:
            self._live.update(table_of(self._department, rows), refresh=True)
            return
        for row in rows:
            for step in STEPS:
                ms = getattr(row, f"{step}_ms")
                if ms is not None and (row.user_id, step) not in self._told:
                    self._told.add((row.user_id, step))
                    if not self._quiet:
                        print(f"{row.user_id}: {step} after {shown(ms)}", flush=True)


def _tell(figures: Figures) -> None:
    print(
        f"{figures.delivered} of {figures.reachable} delivered, median {shown(figures.delivered_median_ms)}, "
        f"p99 {shown(figures.delivered_p99_ms)}; {figures.displayed} displayed, {figures.accepted} accepted"
    )
    away = [row.user_id for row in figures.people if row.reach == "unreachable" and row.delivered_ms is None]
    for words, users in (("did not get it", figures.missing), ("could not be reached", away)):
        if users:
            print(f"{words}: {', '.join(users)}")
    if not figures.is_whole:
        print("who else could be reached is not known: Redis did not answer")
    elif not figures.reachable:
        print("nobody could be reached: this drill has shown nothing")


def _write(figures: Figures, folder: Path) -> None:
    """``drill-DEPARTMENT-TIME.json``, and a picture of the same name where matplotlib is there."""
    folder.mkdir(parents=True, exist_ok=True)
    at = "" if figures.raised_at is None else f"-{figures.raised_at:%Y%m%dT%H%M%SZ}"
    path = folder / f"drill-{figures.department}{at}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")
    written = [path.name]
    if importlib.util.find_spec("matplotlib") is None:
        print("no picture: matplotlib is not installed here; `make dev` installs it", file=sys.stderr)
    else:
        plot(figures, path.with_suffix(".png"))
        written.append(path.with_suffix(".png").name)
    print(f"wrote {' and '.join(written)} in {folder}", file=sys.stderr)


def plot(figures: Figures, path: Path) -> None:
    """The share of those who could be reached against time, and each person's moments where they are not too many."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot, ticker

    reachable = [row for row in figures.people if row.is_reachable]
    named = [row for row in figures.people if row.delivered_ms is not None or row.is_reachable]
    has_names = 0 < len(named) <= _MOST_NAMES
    height = max(4.0, 0.25 * len(named) + 1.5) if has_names else 4.0
    figure, panels = pyplot.subplots(
        1, 2 if has_names else 1, figsize=(11 if has_names else 7, height), layout="constrained", squeeze=False
    )
    shares = panels[0][0]
    looks: Mapping[str, tuple[str, str]] = {
        "delivered": ("#1f77b4", "o"),
        "displayed": ("#ff7f0e", "s"),
        "accepted": ("#2ca02c", "D"),
    }
    for step, (colour, mark) in looks.items():
        # A logarithmic axis has no 0; half a millisecond is below what is measured.
        took = sorted(max(0.5, ms) for row in reachable if (ms := getattr(row, f"{step}_ms")) is not None)
        if took:
            rising = [(n + 1) / len(reachable) for n in range(len(took))]
            shares.step([took[0], *took], [0, *rising], where="post", color=colour, marker=mark, ms=4, label=step)
    shares.set(xscale="log", ylim=(0, 1.05), xlabel="after the raise, ms", ylabel="share of those who could be reached")
    axes: list[Any] = [shares]
    if has_names:
        names = panels[0][1]
        for at, row in enumerate(reversed(named)):
            for step, (colour, mark) in looks.items():
                ms = getattr(row, f"{step}_ms")
                if ms is not None:
                    names.plot([max(0.5, ms)], [at], color=colour, marker=mark, linestyle="")
        names.set_yticks(range(len(named)), [row.user_id for row in reversed(named)])
        names.set(xscale="log", xlabel="after the raise, ms", ylim=(-0.7, len(named) - 0.3))
        axes.append(names)
    for each in axes:
        each.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        each.grid(visible=True, alpha=0.3)
    if shares.get_legend_handles_labels()[0]:
        shares.legend(loc="best")
    figure.suptitle(
        f"drill, {figures.department}: {figures.delivered} of {figures.reachable} delivered, "
        f"median {shown(figures.delivered_median_ms)}, p99 {shown(figures.delivered_p99_ms)}"
    )
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
