"""Find guests' NICs that are not behind their firewall bridges, plug them, and drop traffic of those left."""
