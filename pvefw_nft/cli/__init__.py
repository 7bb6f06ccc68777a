"""The command line. Only this package prints, and only it ends the process.

Commands are modules that are imported when they are used, so that each starts as fast as it can.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from typing import TYPE_CHECKING

import click

from pvefw_nft.cli.clean_stream import clean_output
from pvefw_nft.errors import HostError, PvefwError

if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMANDS = {
    "compile": ("pvefw_nft.cli.compile", "Print the ruleset of a configuration."),
    "check": ("pvefw_nft.cli.check", "Say what is wrong with a configuration."),
    "explain": ("pvefw_nft.cli.explain", "Say what a diagnostic code means, with an example."),
    "simulate": ("pvefw_nft.cli.simulate", "Say what happens to a packet, and which line decides."),
    "compare": ("pvefw_nft.cli.compare", "Prove two rulesets equal, or show packets that differ."),
    "start": ("pvefw_nft.cli.start", "Bring this host to the ruleset of its configuration."),
    "update": ("pvefw_nft.cli.start", "Bring the running firewall to the current configuration."),
    "restart": ("pvefw_nft.cli.start", "Load the whole ruleset again, without a gap."),
    "stop": ("pvefw_nft.cli.start", "Remove all rules of pvefw from this host."),
    "status": ("pvefw_nft.cli.start", "Say whether the firewall runs, and what is pending."),
    "confirm": ("pvefw_nft.cli.confirm", "Keep a change that was applied with --confirm."),
    "rollback": ("pvefw_nft.cli.confirm", "Return to the ruleset that was confirmed last."),
    "run": ("pvefw_nft.cli.run", "Keep this host at its configuration, as a service."),
    "take-over": ("pvefw_nft.cli.take_over", "Replace Proxmox VE's own firewall, without an open moment."),
    "hand-back": ("pvefw_nft.cli.hand_back", "Return to Proxmox VE's own firewall, without an open moment."),
    "plug": ("pvefw_nft.cli.plug", "Put a guest's NIC behind its firewall bridge."),
    "unplug": ("pvefw_nft.cli.plug", "Remove a guest's NIC's firewall bridge."),
    "plumb": ("pvefw_nft.cli.plug", "Plug all filtered NICs that exist."),
    "localnet": ("pvefw_nft.cli.localnet", "Say what the local network is, and which corosync peers get through."),
    "doctor": ("pvefw_nft.cli.doctor", "Look for what keeps this host's firewall from working."),
}


class _Commands(click.Group):
    """The commands by name; a command's module is imported when it is called."""

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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pvefw", prog_name="pvefw")
def cli() -> None:
    """Compile Proxmox VE firewall files to iptables or nftables, apply them, and prove what they do."""


def discard_output() -> None:
    """Give up standard output, so that what is still buffered does not fail again when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Raises SystemExit with its exit code; see the README for the codes."""
    try:
        code = cli.main(arguments, prog_name="pvefw", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PvefwError as error:
        click.echo(f"{click.style('error', fg='red', bold=True)}: {error.message}", err=True)
        if error.hint:
            click.echo(f"  help: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:  # commands report those of files themselves; what is left is their own output
        discard_output()
        click.echo(f"{click.style('error', fg='red', bold=True)}: cannot print: {error.strerror}", err=True)
        sys.exit(HostError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


def run() -> None:
    """Run the command of this process and end it at once.

    All is written by then; to take a large ruleset apart first would take a tenth of the time.
    """
    clean_output()
    try:
        main()
    except SystemExit as end:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError):  # closed, or its reader is gone
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
