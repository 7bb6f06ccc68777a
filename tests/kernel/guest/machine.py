"""Booting the guest, and asking it to run commands and functions."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from . import image, tsc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[3]

BOOT_SECONDS = (100.0, 100.0, 100.0)
"""How long each attempt to boot may take: 4 s on an idle machine, but other work may hold its processors. There are
more than one, since about one boot in some hundreds hangs under QEMU's TCG."""

KERNEL_COMMAND_LINE = (
    "console=ttyS0 loglevel=7 panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check "
    "random.trust_cpu=on cryptomgr.notests audit=0 apparmor=0 raid=noautodetect "
    # QEMU keeps translated code by its address: programs that lie at the same one each time are translated once
    "norandmaps "
    "init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off"
)

PROCESSOR = "max,la57=off,avx=off,avx2=off,smap=off,smep=off,pku=off,umip=off"
"""What of a processor costs the emulator time, and changes nothing for a firewall, is left out: wide registers, a fifth
level of page tables, and protections of the kernel's memory from its own mistakes."""


class GuestError(Exception):
    """The guest did not boot, did not answer in time, or a function called in it failed."""


class Guest:
    """One booted guest. Use as a context manager; the guest is gone afterwards.

    ``share`` is a folder that host and guest both see under the same path and may write to; all other files the guest
    sees as the host has them, and its changes to them stay in the guest.
    """

    def __init__(
        self,
        *,
        memory: int = 1024,
        processors: int = 1,
        boot_seconds: Sequence[float] = BOOT_SECONDS,
        kernel: Path | None = None,
    ) -> None:
        """Boot a guest with ``memory`` MiB; boot it again where it hangs, once for each of ``boot_seconds``.

        Of several ``processors`` all but the first are off outside of :meth:`with_all_processors`: the same work takes
        twice the time on two emulated ones.
        ``kernel`` is the kernel package to boot, None: the kernel of this machine's release or ``$PVEFW_LAB_KERNEL``.

        Raises:
            LabUnavailableError: QEMU or the kernel cannot be had on this machine.
            GuestError: the last attempt took too long as well.
        """
        made = image.prepare(kernel)
        for attempts_left, seconds in zip(reversed(range(len(boot_seconds))), boot_seconds, strict=True):
            try:
                self._boot(made, memory, processors, seconds)
            except GuestError as error:
                if not attempts_left:
                    raise
                print(f"the guest is booted again: {error}", file=sys.stderr)
            else:
                break
        self._others = [f"/sys/devices/system/cpu/cpu{number}/online" for number in range(1, processors)]
        self._switch_others(0)

    def _boot(self, made: image.Image, memory: int, processors: int, boot_seconds: float) -> None:
        self.share = Path(tempfile.mkdtemp(prefix="pvefw-lab-"))
        control = self.share / "control.sock"
        command = _qemu_command(made, self.share, control, memory, processors)
        # The guest must not outlive this process, however that ends.
        self._qemu = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            self._agent = self._connect(control, time.monotonic() + boot_seconds)
        except BaseException:
            self.close()
            raise

    def _connect(self, control: Path, deadline: float) -> Connection[Any, Any]:
        link = socket.socket(socket.AF_UNIX)
        while True:
            with suppress(FileNotFoundError, ConnectionRefusedError):
                link.connect(str(control))
                break
            if self._qemu.poll() is not None or time.monotonic() > deadline:
                raise GuestError(f"QEMU did not start: {self._last_words()}")
            time.sleep(0.05)
        agent: Connection[Any, Any] = Connection(link.detach())
        if self._receive(agent, deadline) != ("ready",):
            raise GuestError("the agent's first word was not 'ready'")
        return agent

    def _receive(self, agent: Connection[Any, Any], deadline: float) -> Any:  # noqa: ANN401 - any message of the agent
        if not agent.poll(max(0.0, deadline - time.monotonic())):
            raise GuestError(f"no answer from the guest in time: {self._last_words()}")
        try:
            return agent.recv()
        except (EOFError, ConnectionResetError):
            raise GuestError(f"the guest is gone: {self._last_words()}") from None

    def _last_words(self) -> str:
        """Return the end of the guest's console, and what QEMU said if it has ended."""
        words = ""
        with suppress(OSError):
            words = (self.share / "console").read_text(errors="replace")[-3000:]
        if self._qemu.poll() is not None and self._qemu.stdout is not None:
            words += self._qemu.stdout.read().decode(errors="replace")[-1000:]
        return words.strip() or "(its console is empty)"

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: Path = REPOSITORY,
        seconds: float = 300.0,
        output: Callable[[bytes], object] | None = None,
    ) -> tuple[int, bytes]:
        """Run a command in the guest and return its exit status and its output (standard error included).

        ``output`` gets the output piece by piece as it comes. A command that takes longer than ``seconds``
        raises :class:`GuestError` and ends the guest.
        """
        self._agent.send(("run", list(argv), str(cwd)))
        deadline = time.monotonic() + seconds
        collected = bytearray()
        while True:
            match self._answer(deadline):
                case ("output", bytes(piece)):
                    collected += piece
                    if output is not None:
                        output(piece)
                case ("exit", int(status)):
                    return status, bytes(collected)
                case other:
                    raise GuestError(f"unexpected answer {other!r}")

    def call(self, target: str, *args: Any, seconds: float = 300.0) -> Any:  # noqa: ANN401 - any function's
        """Call ``target`` (``module:function``) in the guest and return its result.

        Arguments and result travel pickled.

        Raises:
            GuestError: the function raised (the message is its traceback), or took longer than ``seconds``.
        """
        self._agent.send(("call", target, args))
        match self._answer(time.monotonic() + seconds):
            case ("value", value):
                return value
            case ("error", str(text)):
                raise GuestError(text)
            case other:
                raise GuestError(f"unexpected answer {other!r}")

    @contextmanager
    def with_all_processors(self) -> Iterator[None]:
        """Have the guest use all its processors while the block runs, for what is to happen at the same time."""
        self._switch_others(1)
        try:
            yield
        finally:
            if not self._agent.closed:  # else the guest is gone
                self._switch_others(0)

    def _switch_others(self, state: int) -> None:
        """Switch all processors but the first on (1) or off (0); a machine with one core emulates no second one."""
        for switch in self._others:
            status, said = self.run(["sh", "-c", f"[ ! -e {switch} ] || echo {state} > {switch}"])
            if status != 0:
                raise GuestError(f"a processor cannot be switched: {said.decode(errors='replace')}")

    def cpu_seconds(self) -> float:
        """Return the processor time that the emulated machine has taken so far, however busy others are."""
        fields = Path(f"/proc/{self._qemu.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime (man 5 proc)

    def _answer(self, deadline: float) -> Any:  # noqa: ANN401 - any message of the agent
        try:
            return self._receive(self._agent, deadline)
        except GuestError:
            self._qemu.kill()
            self.close()
            raise

    def close(self) -> None:
        """Power the guest off, or end it where it does not; remove the share."""
        if hasattr(self, "_agent"):
            with suppress(OSError):
                self._agent.send(("stop",))
            try:
                self._qemu.wait(10)
            except subprocess.TimeoutExpired:
                self._qemu.kill()
            self._agent.close()
        else:
            self._qemu.kill()
        self._qemu.wait()
        shutil.rmtree(self.share, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _qemu_command(made: image.Image, share: Path, control: Path, memory: int, processors: int) -> list[str]:
    words: dict[str, object] = {
        "lab.share": share,
        "lab.modules": made.modules,
        "lab.init": Path(__file__).parent / "guest-init.sh",
        "lab.python": sys.executable,
        "lab.source": REPOSITORY,
    }
    for path in words.values():
        if any(character.isspace() or character == "," for character in str(path)):
            raise image.LabUnavailableError(f"the lab cannot work with blanks or commas in a path: {path}")
    # Linux measures the counter against timers while it boots. Where QEMU has to wait for a processor meanwhile, it
    # measures too little, and the guest's time runs up to 14 times too fast for good.
    words |= {} if (frequency := tsc.kilohertz()) is None else {"tsc_early_khz": frequency}
    append = " ".join([KERNEL_COMMAND_LINE, *(f"{key}={value}" for key, value in words.items())])
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    # TCG always: nested KVM hangs on some machines, and a test must not depend on the processor it gets.
    command += ["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", PROCESSOR]
    command += ["-smp", str(min(processors, os.cpu_count() or 1)), "-m", str(memory)]
    command += ["-kernel", str(made.vmlinux), "-initrd", str(made.initrd), "-append", append]
    command += ["-serial", f"file:{share / 'console'}"]
    for name, path, extra in (("root", Path("/"), ",readonly=on"), ("share", share, "")):
        command += ["-fsdev", f"local,id={name},path={path},security_model=none,multidevs=remap{extra}"]
        command += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    command += [
        "-device",
        "virtio-serial-pci",
        "-chardev",
        f"socket,id=control,path={control},server=on,wait=off",
    ]
    command += ["-device", "virtserialport,chardev=control,name=control", "-device", "virtio-rng-pci"]
    return command
