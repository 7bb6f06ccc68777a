"""The command line. Only this package prints, and only it ends the process.

Commands are modules that are imported when they are used, so that each starts as fast as it can.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.cli import interrupts
from pvefw_nft.cli.clean_stream import clean_output
from pvefw_nft.cli.console import colour
from pvefw_nft.errors import HostError, PvefwError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = {
    "compile": ("pvefw_nft.cli.compile", "Print the ruleset of a configuration."),
    "check": ("pvefw_nft.cli.check", "Report mistakes in a configuration."),
    "explain": ("pvefw_nft.cli.explain", "Explain a diagnostic code, with an example."),
    "simulate": ("pvefw_nft.cli.simulate", "Show the verdict on a packet, and the line that decides."),
    "compare": ("pvefw_nft.cli.compare", "Prove two rulesets equal, or show packets that differ."),
    "start": ("pvefw_nft.cli.start", "Load the ruleset of the configuration."),
    "update": ("pvefw_nft.cli.start", "Apply changes if the firewall is running."),
    "restart": ("pvefw_nft.cli.start", "Load the whole ruleset again, without a gap."),
    "stop": ("pvefw_nft.cli.start", "Remove all rules of pvefw from this host."),
    "status": ("pvefw_nft.cli.status", "Show whether the firewall runs, and pending changes."),
    "confirm": ("pvefw_nft.cli.confirm", "Keep a change that was applied with --confirm."),
    "rollback": ("pvefw_nft.cli.confirm", "Return to the ruleset that was confirmed last."),
    "run": ("pvefw_nft.cli.run", "Run as a service: apply the configuration and its changes."),
    "take-over": ("pvefw_nft.cli.take_over", "Replace Proxmox VE's own firewall; the host is never open."),
    "hand-back": ("pvefw_nft.cli.hand_back", "Return to Proxmox VE's own firewall; the host is never open."),
    "plug": ("pvefw_nft.cli.plug", "Put a guest's NIC behind its firewall bridge."),
    "unplug": ("pvefw_nft.cli.plug", "Remove a guest's NIC's firewall bridge."),
    "plumb": ("pvefw_nft.cli.plug", "Put all filtered NICs behind their firewall bridges."),
    "localnet": ("pvefw_nft.cli.localnet", "Show the local network, and the corosync peers that are let in."),
    "doctor": ("pvefw_nft.cli.doctor", "Look for problems that keep this host's firewall from working."),
    "cluster": ("pvefw_nft.cli.cluster", "Ask all nodes over ssh, or apply their configurations one by one."),
    "completion": ("pvefw_nft.cli.completion", "Print the completion script for a shell."),
}


class _Commands(click.Group):
    """The commands by name; a command's module is imported when it is called."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:  # noqa: ANN401 - click's
        made = super().make_context(*arguments, **options)
        made.color = colour()
        return made

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        gc.disable()  # importing makes no garbage, and looking for it takes a tenth of the time
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        gc.enable()
        command = getattr(module, cmd_name.replace("-", "_") + "_command")
        if not isinstance(command, click.Command):
            raise TypeError(cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches  # deferred: needed for a mistake only

            close = get_close_matches(args[0][:60], _COMMANDS, n=1)
            ctx.fail(f"no command `{args[0][:60]}`{f'; did you mean `{close[0]}`?' if close else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


def _print_versions(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: ARG001 - click's
    if value and not ctx.resilient_parsing:
        from pvefw_nft.host.versions import version_lines  # deferred: few ask

        for line in version_lines():
            click.echo(line)
        ctx.exit()


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Print the versions of pvefw, its libraries and the tools it calls.",
)
def cli() -> None:
    """Compile Proxmox VE firewall files to iptables or nftables, apply them, and prove their effect."""


def discard_output() -> None:
    """Give up standard output, so that buffered output does not fail again when the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed before pvefw started
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Raises SystemExit with its exit code; see the README for the codes."""
    try:
        try:
            with interrupts.come_again():
                code = cli.main(arguments, prog_name="pvefw", standalone_mode=False)
        finally:
            _tell_warnings()
        sys.stdout.flush()
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PvefwError as error:
        _tell_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except Exception as error:  # a command's own failures were told above
        _tell_unexpected(error)
        sys.exit(HostError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def _tell_warnings() -> None:
    """Print which records of the host were damaged, if a command read any."""
    state = sys.modules.get("pvefw_nft.host.records.state")
    for warning in state.take_warnings() if state is not None else ():
        with contextlib.suppress(OSError, ValueError):
            click.echo(f"{click.style('warning', fg='yellow', bold=True)}: {warning}", err=True, color=colour())


def _tell_unexpected(error: Exception) -> None:
    """Report in one line that nothing could be printed, or else the error and its place."""
    import traceback  # deferred: it takes milliseconds

    frame = traceback.extract_tb(error.__traceback__)[-1]
    if _is_of_output(error, frame.filename):
        discard_output()
        reason = error.strerror if isinstance(error, OSError) else "standard output is closed"
        _tell_error(f"cannot print: {reason}")
        return
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        tools = sys.modules.get("pvefw_nft.host.tools")
        hints = {} if tools is None else tools.LIMIT_HINTS
        _tell_error(f"{where}{error.strerror or error}", hints.get(error.errno))
    else:
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        _tell_error(
            f"pvefw failed: {type(error).__name__}: {error} ({place})", "this is a bug of pvefw; please report it"
        )


def _is_of_output(error: Exception, place: str) -> bool:
    """Tell whether writing the output failed, by the file that did: of click, or of this package, which alone prints.

    A socket or file of the host may fail with the same errors, and must not be taken for it.
    """
    prints = Path(place).parent in (Path(click.__file__).parent, Path(__file__).parent)
    return prints and (isinstance(error, ValueError) or (isinstance(error, OSError) and error.filename is None))


def _tell_error(message: str, hint: str | None = None) -> None:
    with contextlib.suppress(OSError, ValueError):  # standard error may be closed as well
        click.echo(f"{click.style('error', fg='red', bold=True)}: {message}", err=True, color=colour())
        if hint is not None:
            click.echo(f"  help: {hint}", err=True)


def run() -> None:
    """Run the command of this process and end it at once.

    All is written by then; to take a large ruleset apart first would take a tenth of the time.
    """
    clean_output()
    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:  # while a command ends
        code = 130
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or its reader is gone
            stream.flush()
    os._exit(code)
