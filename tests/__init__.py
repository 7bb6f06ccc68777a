"""The tests of pvefw; the folders mirror the packages, and ``kernel`` and ``cases`` run on a real kernel."""
