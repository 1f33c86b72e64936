"""A row of the CSV, and what all tries look at."""

import dataclasses
import re
from pathlib import Path

from framework.checkpoints import load_checkpoint
from framework.commands.messages import LINES, WIDTH
from framework.errors import FrameworkError

GOOD = "as promised"


@dataclasses.dataclass
class Row:
    """What was done and what became of it.

    Args:
        kind: kills, signals, disks or fuzz.
        case: number within the kind; it is the seed too.
        what: the method, or the kind of input.
        fault: what was done to it.
        processes: of the run.
        moment: when, in seconds after the start or in words.
        status: exit status; empty for a hang.
        seconds: until the last process was gone, after a signal from there, otherwise from the start.
        checkpoints: files there afterwards, all read.
        equal: whether the resumed run ended as the uninterrupted one, bit for bit; empty where nothing was resumed.
        outcome: `as promised`, or what was not.
        said: the message; where something is not as promised and there is none, the last line.
        output: everything that it printed; not in the CSV.
    """

    kind: str
    case: int
    what: str
    fault: str
    processes: int = 1
    moment: str = ""
    status: int | None = None
    seconds: float = 0.0
    checkpoints: int | None = None
    equal: bool | None = None
    outcome: str = GOOD
    said: str = ""
    output: str = ""

    def blame(self, condition: object, text: str) -> None:
        """Notes what was not as promised."""
        if condition:
            self.outcome = text if self.outcome == GOOD else f"{self.outcome}; {text}"

    def columns(self) -> dict[str, object]:
        """As written to the CSV."""
        values = {k: "" if v is None else v for k, v in dataclasses.asdict(self).items() if k != "output"}
        return {**values, "seconds": f"{self.seconds:.1f}"}


def message_of(said: str) -> str:
    """The error message in a run's output; its last line where there is none."""
    parts = re.split(r"^error(?: on rank \d+ of \d+)?: ", said, flags=re.MULTILINE)
    return parts[-1].rstrip() if len(parts) > 1 else last_line(said)


def last_line(said: str) -> str:
    """The last line with anything in it."""
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def one_line(text: str, length: int = 160) -> str:
    """For a cell of the CSV: no line ends, no folder of this machine."""
    flat = " ".join(re.sub(r"/\S*/(run|site-packages)/", "", text).split())
    return "".join(c if c.isprintable() else "?" for c in flat)[:length]


def is_short(text: str) -> bool:
    """Whether it is a message of at most three lines."""
    return 1 <= len(text.splitlines()) <= LINES and all(len(line) <= WIDTH for line in text.splitlines())


def look_at_output(row: Row, said: str) -> None:
    """Notes a traceback, and a message that is too long."""
    row.output += said
    # what torch's launchers log of a worker's end is theirs
    said = "\n".join(line for line in said.splitlines() if not re.match(r"[IWE]\d{4} \d\d:", line))
    row.blame("Traceback (most recent call last)" in said, "traceback")
    text = message_of(said)
    row.blame("\nerror" in f"\n{said}" and not is_short(text), "long message")
    row.said = one_line(text) if text != last_line(said) or row.outcome != GOOD else ""


def look_at_files(row: Row, folder: Path) -> list[Path]:
    """Reads every checkpoint below a folder and notes those that cannot be read."""
    files = sorted(folder.rglob("*.ckpt"))
    broken = []
    for path in files:
        try:
            load_checkpoint(path)
        except FrameworkError:
            broken.append(path.name)
    row.checkpoints = len(files)
    row.blame(broken, f"unreadable: {', '.join(broken)}")
    return files
