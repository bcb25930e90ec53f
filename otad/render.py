# SPDX-License-Identifier: Apache-2.0
"""What the daemon's documents look like to people: status, slots, history, and the line per change of a watch.

Documents come as JSON, from a daemon that may be older or newer: what the contract does not promise may be missing.
Texts in them may come from the platform or from a failed program, so that nothing unprintable reaches the terminal.
Colours and glyphs never carry what the words do not say.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from itertools import zip_longest
from typing import Any, TypeAlias

from otad.units import format_duration, format_size

Document: TypeAlias = Mapping[str, Any]

BAR_CELLS = 30
_LABEL = 12  # the width of what stands in front of each line


@dataclass(frozen=True, slots=True)
class Style:
    """What the place where the text goes can show. `zone`: of the times; None is the machine's."""

    colours: bool = False
    glyphs: bool = False
    bars: bool = False
    zone: tzinfo | None = None

    def green(self, text: str) -> str:
        return self._in("32", text)

    def red(self, text: str) -> str:
        return self._in("31", text)

    def yellow(self, text: str) -> str:
        return self._in("33", text)

    def bold(self, text: str) -> str:
        return self._in("1", text)

    def faint(self, text: str) -> str:
        return self._in("2", text)

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colours and text else text


PLAIN = Style()


def status_text(status: Document, style: Style = PLAIN) -> str:
    """The whole status; its last line says what happens next."""
    status = printable(status)
    device = status["device"]
    blocks = [
        [
            *_labeled(
                "device", f"{device['device_name']}, product {device['product_key']}, otad {status['otad_version']}"
            ),
            *_labeled("session", _session_text(status["session"], style)),
            *(line for problem in status.get("problems", []) for line in _labeled("problem", style.red(problem))),
        ],
        _slot_lines(status, style),
        _deployment_lines(status, style),
        [
            *_other_module_lines(status),
            *_last_lines(status, style),
            *_refused_lines(status, style),
            *_owed_lines(status),
        ],
        [f"{style.bold('next:')} {status['next']}"],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def slots_text(status: Document, style: Style = PLAIN) -> str:
    """The slots alone."""
    return "\n".join(_slot_lines(printable(status), style))


def history_text(deployments: Iterable[Document], style: Style = PLAIN) -> str:
    """A table of past deployments, the last one at the end."""
    rows = [
        (
            _time(entry.get("ended"), style),
            entry["module"],
            entry["version"] or "-",
            entry["outcome"],
            format_size(entry.get("bytes", 0)),
            str(entry.get("resumed", 0)),
            entry.get("reason") or "",
        )
        for entry in map(printable, deployments)
    ]
    if not rows:
        return "no deployment has ended yet"
    head = ("ENDED", "MODULE", "VERSION", "OUTCOME", "BYTES", "RESUMED", "REASON")
    return "\n".join(_table(head, rows, right=(4, 5), style=style))


def change_text(status: Document) -> str:
    """What a watch prints where it can't redraw: one line for this status."""
    status = printable(status)
    deployment = status["deployment"]
    if deployment is None:
        return (
            f"{_ended_text(status['last'])}; next: {status['next']}"
            if status.get("last")
            else f"next: {status['next']}"
        )
    words = f"{_name(deployment)} {_phase(deployment)}"
    if deployment["total"] and deployment["phase"] in _MOVING:
        words += f" {_percent(deployment)} %"
    return f"{words}; next: {status['next']}"


def change_key(status: Document) -> tuple[object, ...]:
    """Two statuses with equal keys are not worth two lines of a watch."""
    deployment = status["deployment"]
    if deployment is None:
        return (status.get("last"),)
    moving = deployment["phase"] in _MOVING and deployment["total"]
    percent = _percent(deployment) // 5 if moving else 0
    return (deployment["id"], deployment["phase"], deployment["attempt"], deployment.get("waits_for"), percent)


def bar(part: int, whole: int, style: Style = PLAIN, cells: int = BAR_CELLS) -> str:
    """How much `part` is of `whole`, as a bar of this many characters."""
    if style.glyphs:
        halves = min(part * cells * 2 // whole, cells * 2) if whole else 0
        full = "━" * (halves // 2) + "╸" * (halves % 2)
        return style.green(full) + style.faint("─" * (cells - len(full)))
    full = "#" * (min(part * cells // whole, cells) if whole else 0)
    return f"[{full.ljust(cells, '-')}]"


def printable(value: Any) -> Any:
    """`value` with every character in it that could move a cursor replaced."""
    match value:
        case str():
            return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in value)
        case list():
            return [printable(item) for item in value]
        case dict():
            return {printable(key): printable(item) for key, item in value.items()}
        case _:
            return value


_MOVING = ("downloading", "installing")


def _session_text(session: Document, style: Style) -> str:
    state = session["state"]
    colour = {"online": style.green, "refused": style.red}.get(state, style.yellow)
    detail = f": {session['detail']}" if session["detail"] else ""
    return f"{colour(state)} since {_time(session['since'], style)}{detail}"


def _slot_lines(status: Document, style: Style) -> list[str]:
    head = ("SLOT", "VERSION", "STATE", "ATTEMPTS", "BOOTNAME", "DEVICE")
    marks, rows = [], []
    for name, slot in status["slots"].items():
        glyph, colour = _mark(name == status["booted"], slot, style)
        marks.append(colour(glyph))
        attempts = slot["attempts_left"]
        rows.append(
            (
                name,
                slot["version"] or "-",
                _slot_words(name, slot, status),
                "-" if attempts is None else str(attempts),
                slot["bootname"],
                slot["device"],
            )
        )
    lines = _table(head, rows, right=(3,), style=style)
    return [f"{mark} {line}" for mark, line in zip((" ", *marks), lines, strict=True)] if style.glyphs else lines


def _mark(booted: bool, slot: Document, style: Style) -> tuple[str, Callable[[str], str]]:
    if slot["good"] is False:
        return ("●" if booted else "×"), style.red
    colour = style.yellow if slot.get("confirmed") is False or slot["good"] is None else style.green
    return ("●" if booted else "○"), colour


def _slot_words(name: str, slot: Document, status: Document) -> str:
    words = []
    if name == status["booted"]:
        words.append("booted")
    if slot["primary"]:
        words.append("primary")
    words.append({True: "good", False: "bad", None: "not known"}[slot["good"]])
    if slot["good"] and slot.get("confirmed") is False:
        words.append("not confirmed")
    deployment = status["deployment"]
    if deployment is not None and deployment.get("target") == name and deployment["phase"] in _MOVING:
        words.append("being written")
    return ", ".join(words)


def _deployment_lines(status: Document, style: Style) -> list[str]:
    deployment = status["deployment"]
    if deployment is None:
        return []
    target = f" to slot {deployment['target']}" if deployment.get("target") else ""
    attempt = f", attempt {deployment['attempt']}" if deployment["attempt"] > 1 else ""
    lines = [f"{style.bold(_name(deployment))}{target}: {_phase(deployment)}{attempt}"]
    if deployment["phase"] in _MOVING:
        lines.append(_transfer_text(deployment, style))
        if deployment["resumed"] or deployment.get("checkpoint"):
            lines.append(_resume_text(deployment))
    if deployment.get("reason"):
        lines.append(style.yellow(f"because of {deployment['reason']}"))
    if deployment.get("held"):
        lines.append(f"held: {deployment['held']['detail'] or deployment['held']['reason']}")
    return _labeled("deployment", *lines)


def _transfer_text(deployment: Document, style: Style) -> str:
    done, total, rate = deployment["bytes"], deployment["total"], deployment["rate"]
    if not total:
        return f"{format_size(done)}, {format_size(rate)}/s"
    parts = [f"{_percent(deployment)} %", f"{format_size(done)} of {format_size(total)}"]
    if style.bars:
        parts.insert(0, bar(done, total, style))
    if rate and done < total:
        parts += [f"{format_size(rate)}/s", f"{format_duration(round((total - done) / rate))} left"]
    if deployment.get("checked"):
        parts.append(f"{format_size(deployment['checked'])} checked")
    return "  ".join(parts)


def _resume_text(deployment: Document) -> str:
    words = []
    if deployment["resumed"]:
        words.append(f"resumed {_times(deployment['resumed'])}")
    if deployment.get("checkpoint"):
        words.append(f"after a power cut it goes on from {format_size(deployment['checkpoint'])}")
    return "; ".join(words)


def _other_module_lines(status: Document) -> list[str]:
    """The modules' versions, unless the slots' table has said it all."""
    modules = status["modules"]
    booted = status["slots"].get(status["booted"], {}).get("version")
    if set(modules) == {"default"} and modules["default"]["version"] == booted:
        return []
    lines = [f"{name} {module['version'] or '(version not known)'}" for name, module in modules.items()]
    return _labeled("modules", *lines)


def _last_lines(status: Document, style: Style) -> list[str]:
    last = status.get("last")
    return _labeled("last", f"{_ended_text(last)}, {_time(last['ended'], style)}") if last else []


def _ended_text(last: Document) -> str:
    reason = f": {last['reason']}" if last.get("reason") else ""
    return f"{_name(last)} {last['outcome'].replace('_', ' ')}{reason}"


def _refused_lines(status: Document, style: Style) -> list[str]:
    lines = []
    for refusal in status.get("refused", []):
        lines.append(f"{style.red(_name(refusal))} since {_time(refusal['since'], style)}: {refusal['reason']}")
        lapses = refusal.get("lapses")
        lines.append(f"tried again after {_time(lapses, style)}" if lapses else "`otad retry` lifts it")
    return _labeled("refused", *lines)


def _owed_lines(status: Document) -> list[str]:
    match status["outbox"]:
        case 0:
            return []
        case 1:
            return _labeled("outbox", "1 report waits for the platform")
        case count:
            return _labeled("outbox", f"{count} reports wait for the platform")


def _name(thing: Document) -> str:
    version = thing["version"] or "the system found here"
    return version if thing["module"] == "default" else f"{thing['module']} {version}"


def _phase(deployment: Document) -> str:
    return str(deployment["phase"]).replace("_", " ")


def _percent(deployment: Document) -> int:
    return min(100, int(deployment["bytes"]) * 100 // int(deployment["total"]))


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _time(text: str | None, style: Style) -> str:
    """A time of a document as the machine's own clock would show it."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return text or "-"
    return moment.astimezone(style.zone).strftime("%Y-%m-%d %H:%M:%S")


def _labeled(label: str, *lines: str) -> list[str]:
    return [f"{name:{_LABEL}}{line}" for name, line in zip_longest((label,), lines, fillvalue="")] if lines else []


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...], style: Style) -> list[str]:
    """The rows below their head, columns two blanks apart; those in `right` are flush right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
    return [style.faint(lines[0]), *lines[1:]]
