"""Feed each reader of untrusted input by the harnesses of ``tests/property/harnesses.py``, as many inputs as wanted.

    python scripts/fuzz_readers.py --inputs 1000000 --save found/
    python scripts/fuzz_readers.py --inputs 20000 lines guest-file-nft

With atheris (``pip install atheris``) the inputs are guided by the coverage of pvefw's own code; without it they are
sound texts with pieces inserted, removed, doubled and moved. Harnesses run side by side in processes of their own.
Inputs that fail are written to ``--save``: keep them in ``tests/fuzz/readers``, which
``tests/property/test_harnesses.py`` runs. Exit status: 0 nothing failed, 1 something did.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

atheris: Any = importlib.import_module("atheris") if importlib.util.find_spec("atheris") is not None else None

LONGEST = 30  # seconds for one input
SHARES = {"guest-file-iptables": 0.1, "guest-file-nft": 0.1, "guest-config-compiled": 0.1, "firewall-files": 0.5}
"""The relative number of inputs of each harness: a compile takes milliseconds."""


def harnesses() -> dict[str, float]:
    """Return the names of the harnesses, each with its share of all inputs."""
    from tests.property.harnesses import HARNESSES  # deferred: atheris has to see the import

    whole = sum(SHARES.get(name, 1.0) for name in HARNESSES)
    return {name: SHARES.get(name, 1.0) / whole for name in HARNESSES}


def feed(name: str, inputs: int, seed: int, save: Path) -> int:
    """Feed one harness in this process; return the exit status."""
    os.environ["PVEFW_RUN_DIRECTORY"] = os.environ["PVEFW_STATE_DIRECTORY"] = tempfile.mkdtemp()
    if atheris is None:
        return _feed_changed(name, inputs, seed, save)
    with atheris.instrument_imports(include=["pvefw_nft", "backends"]):
        from tests.property.harnesses import HARNESSES
    harness, seeds = HARNESSES[name]
    corpus = Path(tempfile.mkdtemp())
    for number, text in enumerate(seeds):
        (corpus / str(number)).write_text(text)
    options = [
        f"-runs={inputs}",
        f"-seed={seed}",
        f"-timeout={LONGEST}",
        "-max_len=8192",
        f"-artifact_prefix={save}/{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], harness)
    atheris.Fuzz()  # ends the process
    return 0


def _feed_changed(name: str, inputs: int, seed: int, save: Path) -> int:
    from scripts.fuzz import mutated
    from tests.property.harnesses import HARNESSES

    harness, seeds = HARNESSES[name]
    failed = 0
    signal.signal(signal.SIGALRM, _hangs)
    for number in range(inputs):
        chance = random.Random(f"{seed} {number}")  # noqa: S311 - repeatable
        data = mutated(chance, chance.choice(seeds)).encode("utf-8", "surrogatepass")
        signal.alarm(LONGEST)
        try:
            harness(data)
        except Exception:
            failed += 1
            (save / f"{name}-{seed}-{number}").write_bytes(data)
            sys.stderr.write(traceback.format_exc())
        finally:
            signal.alarm(0)
    return int(failed > 0)


def _hangs(*_: object) -> None:
    raise TimeoutError(f"one input took longer than {LONGEST} s")


def feed_all(names: list[str], inputs: int, seed: int, save: Path) -> int:
    """Feed harnesses in processes of their own, as many at once as there are processors; return the exit status."""
    share = {name: part for name, part in harnesses().items() if not names or name in names}
    whole = sum(share.values())
    waiting = [(name, max(1, round(inputs * part / whole))) for name, part in share.items()]
    running: dict[int, tuple[str, int, float, subprocess.Popen[bytes]]] = {}
    failed = total = 0
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            name, count = waiting.pop(0)
            log = (save / f"{name}.log").open("wb")
            command = [
                sys.executable,
                __file__,
                "--one",
                "--inputs",
                str(count),
                "--seed",
                str(seed),
                "--save",
                str(save),
                name,
            ]
            started = subprocess.Popen(command, stdout=log, stderr=log)
            running[started.pid] = (name, count, time.monotonic(), started)
        ended, status = os.wait()
        name, count, begun, _ = running.pop(ended)
        seconds = time.monotonic() - begun
        code = os.waitstatus_to_exitcode(status)
        failed += code != 0
        total += count
        verdict = "ok" if code == 0 else f"FAILED ({code}), see {save}/{name}.log"
        sys.stdout.write(f"{name}: {count} inputs in {seconds:.0f} s: {verdict}\n")
        sys.stdout.flush()
    guided = "guided by coverage" if atheris is not None else "changed at random"
    sys.stdout.write(f"seed {seed}: {total} inputs, {guided}; {failed} of {len(share)} harnesses failed\n")
    return int(failed > 0)


def main() -> int:
    """Run from the command line; return the exit status."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("names", nargs="*", help="harnesses (default: all)")
    options.add_argument("--inputs", type=int, default=20_000, help="how many inputs in all (20000)")
    options.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "big"))
    options.add_argument("--save", type=Path, default=Path("fuzz-found"), help="folder for logs and for what fails")
    options.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    given.save.mkdir(parents=True, exist_ok=True)
    if given.one:
        return feed(given.names[0], given.inputs, given.seed, given.save)
    return feed_all(given.names, given.inputs, given.seed, given.save)


if __name__ == "__main__":
    sys.exit(main())
