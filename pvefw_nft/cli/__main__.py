"""Run the command line with ``python -m pvefw_nft.cli``."""

from pvefw_nft.cli import run

run()
