"""Timing programs in turns: machines are shared, so that a time means little and a ratio of neighbouring times a lot.

Programs obey lines of JSON (`Worker`). In each round everybody has a turn, whose order changes from round to round
(`in_turns`); a turn in which others work too is repeated for a while (`undisturbed`); a ratio is taken of two turns of
one round (`Rounds`). Only the standard library is needed here.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from statistics import median, quantiles

# A turn begins when the threads of the one before have gone to sleep, in seconds.
PAUSE = 0.1
# A turn is disturbed if others take more of the processors; one tick of the system's clock is a twentieth of a pause.
DISTURBED = 0.1


class BesideError(Exception):
    """What the user has to see."""


class Worker:
    """A process that obeys one line of JSON after the other."""

    def __init__(self, model, threads):
        command, environment = model.command(threads)
        self.name = model.name
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.start = self._answer()

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def turn(self, **request):
        """The mean seconds of a request's rounds, and the processors' seconds that they took."""
        before = process_seconds(self._process.pid)
        seconds = self.ask(**request)["seconds"]
        return sum(seconds) / len(seconds), process_seconds(self._process.pid) - before

    def total_seconds(self):
        """The processors' seconds since the process began."""
        return process_seconds(self._process.pid)

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise BesideError(f"{self.name}: the program has ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BesideError(f"{self.name}: {answer['error']}")
        return answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()


def busy_seconds():
    """Seconds that all processors have worked since the start of the system; 0 where it does not say."""
    try:
        with open("/proc/stat", encoding="ascii") as stat:
            user, nice, system, _idle, _wait, *rest = map(int, stat.readline().split()[1:9])
        return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        return 0.0


def process_seconds(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except FileNotFoundError:
        return 0.0


def wait_for_quiet(deadline):
    """Sleeps until others leave the processors alone, or until `deadline`."""
    while True:
        busy = busy_seconds()
        time.sleep(PAUSE)
        if busy_seconds() - busy <= DISTURBED * PAUSE * os.cpu_count() or time.perf_counter() > deadline:
            return


def undisturbed(work, patience):
    """What the least disturbed call of `work` has returned, and the share of the processors that others took.

    `work` returns a value and the processors' seconds that were its own. It is called until others take less than
    DISTURBED, or until `patience` seconds are over.
    """
    deadline = time.perf_counter() + patience
    best = None
    while best is None or (best[1] > DISTURBED and time.perf_counter() < deadline):
        wait_for_quiet(deadline)
        busy, start = busy_seconds(), time.perf_counter()
        value, own = work()
        elapsed = time.perf_counter() - start
        others = max(busy_seconds() - busy - own, 0) / elapsed / os.cpu_count()
        best = min(best or (value, others), (value, others), key=lambda call: call[1])
    return best


class Rounds:
    """What was measured: `values[measurement][model]` is a list with a value for each round."""

    def __init__(self):
        self.values = {}
        self.others = []

    def add(self, measurement, model, value):
        self.values.setdefault(measurement, {}).setdefault(model, []).append(value)

    def disturbed(self):
        """Whether most turns were: then the ratios tell nothing."""
        return median(self.others) > DISTURBED

    def ratios(self, measurement, over, under):
        values = self.values[measurement]
        return [a / b for a, b in zip(values[over], values[under])]


def in_turns(models, rounds):
    """Every model once in each round, beginning with another one each time; and the number of the round."""
    for number in range(rounds):
        first = number % len(models)
        for model in models[first:] + models[:first]:
            yield number, model


def table(head, rows):
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def spread(values):
    if len(values) < 2:
        return f"{values[0]:.2f}"
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"{median(values):.2f} ({low:.2f}–{high:.2f})"


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (FileNotFoundError, StopIteration):
        return "an unknown processor"
