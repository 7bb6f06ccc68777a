"""``pvefw hand-back``: from pvefw to Proxmox VE's own firewall."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pvefw_nft.cli import console
from pvefw_nft.cli.command import command
from pvefw_nft.cli.confirm import wait_option
from pvefw_nft.cli.handover import dry_run_option, take_steps
from pvefw_nft.cli.options import make_source, source_options
from pvefw_nft.cli.start import confirm_option, wait_for_confirmation
from pvefw_nft.host.control import make_control
from pvefw_nft.host.firewall import running_ruleset
from pvefw_nft.host.proxmox.hand_back import HandBack
from pvefw_nft.pipeline.inventory import read_node

if TYPE_CHECKING:
    from pathlib import Path


@command("hand-back", answers=True)
@wait_option
@dry_run_option
@confirm_option
@source_options
def hand_back_command(
    root: Path,
    node: str | None,
    local_network: str | None,
    confirm_within: float | None,
    wait: float,
    *,
    dry_run: bool,
) -> None:
    """Return to Proxmox VE's own firewall: pve-firewall, or with `nftables: 1` in host.fw proxmox-firewall.

    The host is never without rules. Proxmox VE's service is started while the rules of pvefw stay loaded, and they are
    removed only when its rules are in the kernel. Each step is printed. If a run is interrupted, run it again to
    complete it.

    Over ssh, use `pvefw hand-back --confirm 120`.
    """
    options = read_node(make_source(root, node, local_network))
    again = [sys.executable, "-m", "pvefw_nft.cli", "take-over", "--force", "--skip-invalid", "--root", str(root)]
    again += ["--node", node] if node is not None else []
    again += ["--local-network", local_network] if local_network is not None else []
    running = running_ruleset()
    again += ["--backend", running.backend] if running is not None else []
    control = make_control()
    handing = HandBack(
        control,
        options.host.options.nftables,
        options.cluster.options.enable,
        confirm_within,
        lambda pending: wait_for_confirmation(control, pending, wait),
        tuple(again),
        wait,
    )
    take_steps(handing.steps(), dry_run=dry_run)
    if not dry_run:
        console.say("Proxmox VE's firewall filters this host; `pvefw take-over` returns to pvefw")
