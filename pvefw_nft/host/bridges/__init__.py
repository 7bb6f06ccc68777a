"""Which guests' NICs are behind their firewall bridges, putting them there, and dropping what is not."""
