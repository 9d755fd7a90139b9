"""Break everything that alerts rest on, again and again, and check on 50 phones that none is lost.

``python -m tests.faults.alerts`` runs 500 faults over 5 seeds on two stands (two gateways on PostgreSQL, one on SQLite)
and ends with a table of recovery times by kind, the four numbers that must be 0, and ``out/faults/alerts.json``. Its
exit status is 1 if one of them is not 0, a fault was not recovered from in time, or fewer than planned were run.
``--short`` runs every kind once. ``--only KIND --seeds N`` repeats what a seed did of one kind, as far as time allows.

A seed decides the order of the kinds, the moment after a raise at which each fault falls, how long it lasts and whom it
meets. Alerts are raised all along. The promises are checked by ``alert_promises``, the faults are in ``alert_faults``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from chatd import tasks
from tests.faults.alert_faults import KINDS, Kind, NotFelt, Scene
from tests.faults.alert_promises import VERDICTS, Judge, Report, Verdict
from tests.faults.alert_stand import Group, Name, Raiser, Stand, Watch, standing
from tests.server import ROOT

OUT: Final = ROOT / "out" / "faults" / "alerts.json"
#: What gateways warned of when something was not well.
LOG: Final = OUT.with_suffix(".log")
PHONES: Final = 50
#: Behind the lossy wire, and in the process that is put to sleep.
FAR, SLEEPERS = 15, 5
STANDS: Final[tuple[Name, ...]] = ("pg", "sqlite")
#: After a fault everything must be at rest within this, or what is missing is lost.
SETTLE_S: Final = 20.0
#: A fault falls so long after an alert was sent: into every step between the request and the last phone.
AFTER_RAISE_S: Final = (0.0, 0.5)
#: The alerts of a fault must be ended within this: dozens of commands, one after the other on one line.
END_S: Final = 30.0
#: The first welcome of all phones, on a busy machine.
COME_S: Final = 60.0


class Outcome(msgspec.Struct, kw_only=True):
    """One fault: how soon all was well again, and what went wrong. ``recovery_s`` None: not within its bound."""

    kind: str
    stand: str
    seed: int
    recovery_s: float | None = None
    #: Of a fault that was lifted after alerts had gone on during it: until all was well after the lift too.
    after_lift_s: float | None = None
    problem: str = ""


class Campaign:
    """One seed on one stand."""

    def __init__(
        self,
        stand: Stand,
        seed: int,
        wire: object | None,
        prefix: Sequence[str],
        address: str,
        *,
        patience: float = 1.0,
        log: Path = LOG,
    ) -> None:
        names = [f"phone.{n:02}" for n in range(PHONES)]
        self.groups = [
            Group(names[: -FAR - SLEEPERS]),
            Group(names[-FAR - SLEEPERS : -SLEEPERS]),
            Group(names[-SLEEPERS:]),
        ]
        self.stand, self.seed = stand, seed
        self.judge = Judge(names)
        self.raiser = Raiser(stand, self.judge, random.Random(f"{seed} {stand.name} raiser"), f"{stand.name}-{seed}")
        self.scene = Scene(stand, self.raiser, self.judge, self.groups, wire)  # type: ignore[arg-type]
        self._prefix, self._address = prefix, address
        self._patience, self._log = patience, log
        self.outcomes: list[Outcome] = []
        self._watches: set[Watch] = set()

    def take(self, report: Report) -> None:
        self.judge.take(report)
        for watch in tuple(self._watches):
            watch.take(report)

    async def run(self, kinds: Sequence[Kind], progress: Progress, task: TaskID) -> None:
        """Let one fault after the other fall; ends early where nothing recovers any more."""
        chance = random.Random(f"{self.seed} {self.stand.name} faults")
        tokens = {name: self.stand.token(name, "nurse") for group in self.groups for name in group.names}
        raising: asyncio.Task[None] | None = None
        try:
            for group in self.groups:
                is_far = group is self.groups[1]
                host = self._address if is_far and self._address else "127.0.0.1"
                urls = [f"ws://{host}:{gateway.port}" for gateway in self.stand.gateways]
                await group.start(urls, tokens, self._prefix if is_far else (), self.take)
            await self._all_here()
            raising = asyncio.create_task(self.raiser.run())
            for kind in kinds:
                progress.update(task, description=f"seed {self.seed}, {self.stand.name}: {kind.name}")
                # A generator of its own: what one fault draws does not depend on how the one before went.
                self.scene.chance = random.Random(chance.random())
                outcome = await self._unless_ended(raising, self._fault(kind))
                self.outcomes.append(outcome)
                progress.advance(task)
                if outcome.problem:
                    said = f"seed {self.seed}, {self.stand.name}, {kind.name}: {outcome.problem}"
                    progress.console.print(said, markup=False)
                    with self._log.open("a") as log:
                        log.write(f"{said}\n{self.stand.logs()}\n")
                    if outcome.recovery_s is None and not await self._all_well():
                        break
            await tasks.end([raising])
            await self._rest()
            self.judge.settle()
        finally:
            if raising is not None:
                await tasks.end([raising])
            for group in self.groups:
                await group.stop()

    @staticmethod
    async def _unless_ended(raising: asyncio.Task[None], fault: Coroutine[Any, Any, Outcome]) -> Outcome:
        """What became of a fault; raises what ended the raiser, without whom nothing would be answered any more."""
        falling = asyncio.create_task(fault)
        try:
            await asyncio.wait([falling, raising], return_when=asyncio.FIRST_COMPLETED)
            if not falling.done():
                raising.result()
                raise RuntimeError("the raiser has ended")
            return falling.result()
        finally:
            await tasks.end([falling])

    async def _all_here(self) -> None:
        async with asyncio.timeout(COME_S):
            while not self._is_all_here():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def _is_all_here(self) -> bool:
        return all(self.judge.position(name) is not None for name in self.scene.phones)

    async def _all_well(self) -> bool:
        try:
            await self._probe(time.monotonic(), COME_S)
        except TimeoutError:
            return False
        return True

    async def _probe(self, began: float, within_s: float) -> float:
        """Raise an alert; returns the seconds from ``began`` until it was accepted and every phone had it.

        Raises:
            TimeoutError: not within ``within_s``.
        """
        words = self.raiser.words()
        watch = Watch(words, self.scene.phones)
        self._watches.add(watch)
        try:
            async with asyncio.timeout(max(0.0, began + within_s - time.monotonic())):
                raised = await self.raiser.by_http(words)
                await watch.done.wait()
        except TimeoutError:
            raise TimeoutError(f"{len(watch.lacking)} phones lack a fresh alert: {watch.lacking[:4]}") from None
        finally:
            self._watches.discard(watch)
        return max(watch.at, raised.at) - began

    async def _fault(self, kind: Kind) -> Outcome:
        outcome = Outcome(kind=kind.name, stand=kind.stand, seed=self.seed)
        chance, broken_before = self.scene.chance, len(self.judge.told)
        self.raiser.sent.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await self.raiser.sent.wait()
        await asyncio.sleep(chance.uniform(*AFTER_RAISE_S))
        try:
            await self._let_fall(kind, outcome)
        except (NotFelt, TimeoutError) as error:
            outcome.problem = str(error) or type(error).__name__
        try:
            await self._settle()
        except TimeoutError:
            outcome.problem = "; ".join([*filter(None, [outcome.problem]), "alerts could not be ended"])
        told = self.judge.told[broken_before:]
        if told:
            outcome.problem = "; ".join([*filter(None, [outcome.problem]), *told])
        return outcome

    async def _let_fall(self, kind: Kind, outcome: Outcome) -> None:
        self.scene.lifted_at = None
        bound_s = kind.bound_s * self._patience
        fault = kind.make(self.scene)
        began = time.monotonic()
        await fault.__aenter__()
        lifting: asyncio.Task[bool | None] | None = None
        try:
            match kind.clock:
                case "restart":
                    lifting = asyncio.create_task(fault.__aexit__(None, None, None))
                    outcome.recovery_s = await self._probe(began, bound_s)
                case "during":
                    outcome.recovery_s = await self._probe(began, bound_s)
                case "after":
                    await asyncio.sleep(self.scene.chance.uniform(*kind.hold_s))
        except BaseException:
            await (lifting or fault.__aexit__(None, None, None))
            raise
        lifting = lifting or asyncio.create_task(fault.__aexit__(None, None, None))
        try:
            if kind.clock == "during":
                # Alerts go on while what was lost is made anew, too.
                await self._probe(time.monotonic(), bound_s)
        finally:
            await lifting
        lifted = self.scene.lifted_at or time.monotonic()
        if time.monotonic() >= lifted + bound_s:
            raise TimeoutError(f"{time.monotonic() - lifted:.1f} s from the lift until phones had begun anew")
        again_s = await self._probe(lifted, bound_s)
        if kind.clock == "after":
            outcome.recovery_s = again_s
        else:
            outcome.after_lift_s = again_s

    async def _rest(self) -> None:
        """Wait until every phone is here and has all that was accepted, as long as that may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S * self._patience):
                while self.judge.missing() or not self._is_all_here():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    async def _settle(self) -> None:
        """Judge what was accepted, once there was time for it; then end those alerts."""
        await self._rest()
        ended = self.judge.open_alerts()
        self.judge.settle()
        async with asyncio.timeout(END_S * self._patience):
            await self.raiser.stand_down(ended)


# --- the plan -----------------------------------------------------------------------------------------------


def plan(seed: int, stand: Name, count: int, kinds: Sequence[Kind]) -> list[Kind]:
    """``count`` faults of a stand: all of its kinds in an order of the seed's, and again."""
    here = [kind for kind in kinds if kind.stand == stand]
    chance = random.Random(f"{seed} {stand} plan")
    planned: list[Kind] = []
    while here and len(planned) < count:
        planned += chance.sample(here, len(here))
    return planned[:count]


def short_plan(stand: Name, kinds: Sequence[Kind]) -> list[Kind]:
    """Every kind once, on the first stand that has it."""
    first = {kind.name: kind for kind in reversed(kinds)}
    return [kind for kind in first.values() if kind.stand == stand]


def possible(kinds: Sequence[Kind], lacking: dict[str, str]) -> tuple[list[Kind], dict[str, str]]:
    """The kinds that can be run here, and why the others cannot; ``lacking``: reasons by "wire", "disk"."""
    refused: dict[str, str] = {}
    for kind in kinds:
        if kind.needs_wire and "wire" in lacking:
            refused[kind.name] = lacking["wire"]
        if kind.name == "SQLite disk full" and "disk" in lacking:
            refused[kind.name] = lacking["disk"]
    return [kind for kind in kinds if kind.name not in refused], refused


@contextlib.contextmanager
def wired() -> Iterator[tuple[object | None, list[str], str]]:
    """The wire to the far phones, the prefix of their command, and where chatd listens for them; None without."""
    from tests.faults import network

    if network.missing() is not None:
        yield None, [], ""
        return
    with network.Network() as wire:
        yield wire, list(wire.run_in(())), wire.address


def lacking_here() -> dict[str, str]:
    """Why some kinds cannot be had on this machine."""
    from tests.faults import network

    lacking = {}
    reason = network.missing()
    if reason is not None:
        lacking["wire"] = reason
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        lacking["disk"] = "a small disk needs Linux and root"
    return lacking


# --- figures ------------------------------------------------------------------------------------------------


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least the part ``q`` of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * round(q * 1000) // 1000) - 1)]


def _row(kind: Kind, outcomes: Sequence[Outcome]) -> dict[str, object]:
    times = [each.recovery_s for each in outcomes if each.recovery_s is not None]
    lifts = [each.after_lift_s for each in outcomes if each.after_lift_s is not None]
    return {
        "kind": kind.name,
        "stand": kind.stand,
        "row": kind.row,
        "from": {"restart": "fault", "during": "fault", "after": "lift"}[kind.clock],
        "faults": len(outcomes),
        "not_recovered": sum(each.recovery_s is None for each in outcomes),
        "median_s": round(statistics.median(times), 3) if times else None,
        "p99_s": round(quantile(times, 0.99), 3) if times else None,
        "max_s": round(max(times), 3) if times else None,
        "after_lift_max_s": round(max(lifts), 3) if lifts else None,
        "bound_s": kind.bound_s,
    }


def show(console: Console, rows: Sequence[dict[str, object]]) -> None:
    """The table of kinds."""
    table = Table(title="Recovery: until a fresh alert is accepted and on all phones")
    columns = ("kind", "stand", "faults", "from", "median_s", "p99_s", "max_s", "after_lift_max_s", "bound_s")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column in ("kind", "stand", "from") else "right")
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    console.print(table)


def total(verdicts: Sequence[Verdict]) -> dict[str, int]:
    return {name: sum(getattr(each, name) for each in verdicts) for name in VERDICTS}


# --- all of it ----------------------------------------------------------------------------------------------


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the campaign; returns the exit status."""
    lacking = lacking_here()
    wanted_kind = arguments.only.lower()
    # A whole name means that kind, and not those whose names hold it too.
    chosen = [kind for kind in KINDS if kind.name.lower() == wanted_kind]
    chosen = chosen or [kind for kind in KINDS if wanted_kind in kind.name.lower()]
    kinds, refused = possible(chosen, lacking)
    seeds = [int(word) for word in arguments.seeds.split(",")][: 1 if arguments.short else None]
    stands = [stand for stand in STANDS if arguments.stand in (None, stand) and any(k.stand == stand for k in kinds)]
    share = -(-arguments.faults // max(1, len(seeds) * len(stands)))
    plans = {
        (seed, stand): short_plan(stand, kinds) if arguments.short else plan(seed, stand, share, kinds)
        for seed in seeds
        for stand in stands
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.with_suffix(".log").write_text("")
    outcomes: list[Outcome] = []
    verdicts: list[Verdict] = []
    told: list[str] = []
    seen: Counter[str] = Counter()
    accepted = events = failed = unjudged = unanswered = 0
    is_interrupted = False
    began = time.monotonic()
    with Progress(console=console) as progress, wired() as (wire, prefix, address):
        task = progress.add_task("faults", total=sum(map(len, plans.values())))
        for (seed, stand_name), planned in plans.items():
            if not planned or is_interrupted:
                continue
            with standing(stand_name, "0.0.0.0" if wire is not None else "127.0.0.1") as stand:
                if stand_name == "sqlite" and stand.disk is None and "disk" not in lacking:
                    refused["SQLite disk full"] = "tmpfs cannot be mounted"
                    planned = [kind for kind in planned if kind.name not in refused]  # noqa: PLW2901
                campaign = Campaign(
                    stand,
                    seed,
                    wire,
                    prefix,
                    address,
                    patience=arguments.patience,
                    log=arguments.out.with_suffix(".log"),
                )
                try:
                    asyncio.run(campaign.run(planned, progress, task))
                except (KeyboardInterrupt, asyncio.CancelledError):
                    is_interrupted = True
                except Exception:
                    # What was seen until here still counts; the plan is not fulfilled.
                    console.print(traceback.format_exc(), markup=False)
                outcomes += campaign.outcomes
                verdicts.append(campaign.judge.verdict)
                told += [f"seed {seed}, {stand_name}: {each}" for each in campaign.judge.told]
                seen += campaign.judge.seen
                accepted += campaign.judge.accepted_count
                unjudged += campaign.judge.unsettled_count
                unanswered += campaign.raiser.caller.unanswered
                events += campaign.judge.events
                failed += campaign.raiser.failed
    by_kind: defaultdict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind, outcome.stand].append(outcome)
    rows = [_row(kind, by_kind[kind.name, kind.stand]) for kind in kinds if by_kind[kind.name, kind.stand]]
    show(console, rows)
    for name, why in refused.items():
        console.print(f"not run: {name}: {why}")
    numbers = total(verdicts)
    wanted = sum(map(len, plans.values()))
    well = sum(each.recovery_s is not None and not each.problem for each in outcomes)
    console.print(
        f"{len(outcomes)} of {wanted} faults, {well} recovered from in time, {accepted} accepted alerts, "
        f"{events} events, {failed} refused attempts, {PHONES} phones, {time.monotonic() - began:.0f} s"
    )
    console.print(
        f"accepted alerts lost {numbers['lost']}, silent gaps {numbers['silent_gaps']}, "
        f"order violations {numbers['order']}, duplicates on screen {numbers['duplicates']}"
    )
    if unjudged:
        console.print(f"{unjudged} of the accepted alerts were not judged: the run ended while a fault lasted")
    if unanswered:
        console.print(f"{unanswered} commands had no answer on a line that lived, and were sent again")
    for line in told:
        console.print(line, markup=False)
    problems = [each for each in outcomes if each.problem]
    is_good = not any(numbers.values()) and well == wanted and not (refused and os.environ.get("CI") == "true")
    _write(
        arguments.out,
        {
            "seeds": seeds,
            "short": arguments.short,
            "phones": PHONES,
            "patience": arguments.patience,
            "planned": wanted,
            "run": len(outcomes),
            "recovered": well,
            "accepted": accepted,
            "not_judged": unjudged,
            "unanswered_commands": unanswered,
            "events": events,
            "refused_attempts": failed,
            "verdict": numbers,
            "told": told,
            "kinds": rows,
            "not_run": refused,
            "problems": [msgspec.to_builtins(each) for each in problems],
            "seen": dict(sorted(seen.items())),
            "seconds": round(time.monotonic() - began),
        },
    )
    return 0 if is_good else 1


def _write(path: Path, figures: dict[str, object]) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(figures)) + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3,4,5", help="comma-separated")
    parser.add_argument("--faults", type=int, default=500, help="of all seeds and stands together")
    parser.add_argument("--short", action="store_true", help="the first seed, every kind once")
    parser.add_argument("--only", default="", help="a kind's name, or a part of it")
    parser.add_argument("--stand", choices=STANDS, help="one of the two alone")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="times every bound, on a machine that others use too"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="where the figures go")
    # What was seen until then is shown, and everything that was started is ended, in order: asyncio ends the campaign's
    # own task at the first SIGINT. Raised anywhere else, KeyboardInterrupt would end all tasks at once, those that read
    # the phones' reports among them, and what was not heard would pass for lost.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    return run(parser.parse_args(), Console())


if __name__ == "__main__":
    raise SystemExit(main())
