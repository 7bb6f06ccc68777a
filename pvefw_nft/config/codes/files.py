"""Codes about files, sections, options, and what [ALIASES], [IPSET] and [group] define."""

from __future__ import annotations

from pvefw_nft.config.codes.declaration import (
    CLUSTER,
    GUEST,
    HOST,
    ON,
    SKIPPED,
    UNTRIED,
    Example,
    error,
    note,
    warning,
)

CODES = (
    error(
        "syntax",
        "a line that cannot be read",
        "The line does not have the form that its section asks for, so its meaning is unknown. The underlined columns "
        "are the first that do not fit.",
        SKIPPED,
        Example(
            GUEST,
            ON + "[RULES]\nIN ACCEPT -p tcp dport 22\n",
            ON + "[RULES]\nIN ACCEPT -p tcp -dport 22\n",
        ),
    ),
    error(
        "too-long",
        "a rule or list that is too long",
        "iptables-restore reads lines of at most 10,240 bytes and words of at most 1,023 characters. A longer one "
        "would make the whole ruleset fail to load.",
        "the line is passed on, and loading fails.",
        Example(
            GUEST,
            ON + "[RULES]\nIN ACCEPT -source 192.0.2.1" + ",192.0.2.1" * 110 + "\n",
            ON + "[IPSET many]\n192.0.2.1\n[RULES]\nIN ACCEPT -source +many\n",
        ),
    ),
    error(
        "no-section",
        "text before the first section",
        "A line belongs to the section above it. Before the first header there is none, so the line is ignored.",
        SKIPPED,
        Example(HOST, "nosmurfs: 0\n", "[OPTIONS]\nnosmurfs: 0\n"),
    ),
    error(
        "unknown-section",
        "an unknown section header",
        "The lines below it belong to no section and are ignored. They are not taken as part of the section above.",
        "the section above does not end: the lines below the unknown header are read as part of it.",
        Example(CLUSTER, ON + "[RULEZ]\nIN SSH(ACCEPT)\n", ON + "[RULES]\nIN SSH(ACCEPT)\n"),
    ),
    error(
        "misplaced-section",
        "a section in a file that has no such section",
        "host.fw has [OPTIONS] and [RULES] only, and groups are defined in cluster.fw. The section's lines are "
        "ignored.",
        SKIPPED,
        Example(
            HOST,
            "[ALIASES]\nadmin 192.0.2.10\n",
            "[OPTIONS]\nnosmurfs: 1\n",
        ),
    ),
    error(
        "not-utf8",
        "a line that is not UTF-8",
        "The file was saved in another encoding. Outside of comments the line cannot be read reliably, so it is left "
        "out. Save the file as UTF-8.",
        SKIPPED,
        Example(
            CLUSTER,
            ON + "[RULES]\nIN ACCEPT -source caf\udce9\n",
            ON + "[ALIASES]\ncafe 192.0.2.1\n[RULES]\nIN ACCEPT -source cafe\n",
        ),
    ),
    note(
        "comment-not-utf8",
        "a comment that is not UTF-8",
        "The rule holds, but its comment was saved in another encoding and will look wrong in other programs.",
        UNTRIED,
        Example(
            CLUSTER,
            ON + "[RULES]\nIN SSH(ACCEPT) # caf\udce9\n",
            ON + "[RULES]\nIN SSH(ACCEPT) # caf\u00e9\n",
        ),
    ),
    error(
        "control-character",
        "a control character in a line",
        "Such a character is invisible in most editors, and each program treats it differently. The line is left out.",
        UNTRIED,
        Example(GUEST, ON + "[RULES]\nIN SSH(ACCEPT)\x07\n", ON + "[RULES]\nIN SSH(ACCEPT)\n"),
    ),
    warning(
        "old-option",
        "an option without effect",
        "Older versions of Proxmox VE had this option, or it was never put to use. It has no effect.",
        "the option is ignored.",
        Example(CLUSTER, ON + "optimize: 1\n", ON),
    ),
    error(
        "unknown-option",
        "an option that this file does not have",
        "The option is misspelled, or it belongs in another file. For example, `policy_in` for hosts is in cluster.fw, "
        "not in host.fw. The option has no effect here.",
        SKIPPED,
        Example(HOST, "[OPTIONS]\npolicy_in: DROP\n", "[OPTIONS]\ntcpflags: 1\n"),
    ),
    error(
        "bad-option-value",
        "a value that an option does not take",
        "The line is left out. The option then has its default, or the strict value if the default would open the "
        "firewall.",
        SKIPPED,
        Example(CLUSTER, ON + "policy_forward: REJECT\n", ON + "policy_forward: ACCEPT\n"),
    ),
    error(
        "bad-log-level",
        "an unknown log level",
        "Log levels are emerg, alert, crit, err, warning, notice, info, debug and nolog.",
        SKIPPED,
        Example(GUEST, ON + "[RULES]\nIN SSH(ACCEPT) -log loud\n", ON + "[RULES]\nIN SSH(ACCEPT) -log info\n"),
    ),
    warning(
        "redefined",
        "a name that is defined twice",
        "The later definition replaces the earlier one as a whole. Rules above it that use the name use the later one, "
        "too.",
        "the later definition counts, too.",
        Example(
            CLUSTER,
            ON + "[IPSET management]\n192.0.2.1\n[IPSET management]\n192.0.2.2\n",
            ON + "[IPSET management]\n192.0.2.1\n192.0.2.2\n",
        ),
    ),
    error(
        "bad-name",
        "a name that is not allowed",
        "Names of aliases, ipsets and groups begin with a letter, go on with letters, digits, `-` and `_`, and have 2 "
        "to 64 characters (groups: 18).",
        SKIPPED,
        Example(
            CLUSTER,
            ON + "[IPSET 1st-floor]\n192.0.2.1\n",
            ON + "[IPSET management]\n192.0.2.1\n",
        ),
    ),
    error(
        "option-comment",
        "a comment behind the value of an option",
        "Proxmox does not cut off a comment there, so it cannot read the line, and pvefw does not read it either. The "
        "option keeps its default; a policy counts as DROP if the line names anything but the default. `start` takes "
        "`enable` as 1, so that a comment never switches a firewall off.",
        "the iptables firewall leaves the line out; the nft firewall refuses the whole file.",
        Example(CLUSTER, ON + "ebtables: 0 # no layer 2\n", ON + "# no layer 2\nebtables: 0\n"),
    ),
    warning(
        "option-comment-same",
        "a comment behind the value that an option has anyway",
        "The comment makes the line unreadable, so the line is left out. The option keeps the same value.",
        "the iptables firewall leaves the line out; the nft firewall refuses the whole file.",
        Example(CLUSTER, ON + "policy_in: DROP # strict\n", ON + "policy_in: DROP\n"),
    ),
    warning(
        "unusual-value",
        "a number that Proxmox's API or the kernel does not take",
        "Proxmox checks such numbers in its API, not in files. pvefw accepts the number. If the kernel's tools would "
        "refuse it, the nearest number that they accept is loaded, so that loading never fails half way.",
        "the number is passed on unchanged. If the kernel's tools refuse it, no ruleset is loaded at all.",
        Example(CLUSTER, ON + "log_ratelimit: rate=20000/second\n", ON + "log_ratelimit: rate=10000/second\n"),
    ),
    warning(
        "contradictory-entry",
        "ipset entries that contradict each other",
        "One entry says that a network is in the set, another (with `!`) that it is not. If both have the same text, "
        "the first one counts. If one network is written in two ways, such as an alias and its address, the last one "
        "counts.",
        "the same entry counts, without a warning.",
        Example(
            CLUSTER,
            ON + "[ALIASES]\noffice 192.0.2.0/24\n[IPSET management]\noffice\n!192.0.2.0/24\n",
            ON + "[ALIASES]\noffice 192.0.2.0/24\n[IPSET management]\noffice\n",
        ),
    ),
    warning(
        "duplicate-entry",
        "an ipset entry that exists already",
        "An ipset holds each network once. The second entry changes nothing.",
        "entries with the same text are taken once, and so are two spellings of one network.",
        Example(
            CLUSTER,
            ON + "[IPSET management]\n192.0.2.1\n192.0.2.1/32\n",
            ON + "[IPSET management]\n192.0.2.1\n",
        ),
    ),
    error(
        "whole-space",
        "a /0 in an ipset",
        "The kernel's sets cannot hold the whole address space as one entry, but they can hold its two halves.",
        SKIPPED,
        Example(
            CLUSTER,
            ON + "[IPSET management]\n0.0.0.0/0\n",
            ON + "[IPSET management]\n0.0.0.0/1\n128.0.0.0/1\n",
        ),
    ),
    warning(
        "host-bits-cleared",
        "host bits in an alias or ipset",
        "`192.0.2.5/24` is read as the network 192.0.2.0/24, with all its 256 addresses. Write the network, or one "
        "host without a length.",
        "the line is taken, and the kernel's tools clear the host bits.",
        Example(
            CLUSTER,
            ON + "[IPSET management]\n192.0.2.5/24\n",
            ON + "[IPSET management]\n192.0.2.0/24\n",
        ),
    ),
    warning(
        "set-name-collision",
        "two ipsets with one hashed name",
        "An ipset's name has at most 31 bytes, so a hash replaces a long name. Two names can have the same "
        "hash. pvefw gives such sets other names, so that rules use the right set.",
        UNTRIED,
        Example(
            GUEST,
            ON + "[IPSET allowed-clients-3744e]\n192.0.2.1\n[IPSET allowed-clients-43910]\n192.0.2.2\n"
            "[RULES]\nIN ACCEPT -source +allowed-clients-3744e\nIN ACCEPT -source +allowed-clients-43910\n",
            ON + "[IPSET allowed-clients-3744e]\n192.0.2.1\n[IPSET more-clients]\n192.0.2.2\n"
            "[RULES]\nIN ACCEPT -source +allowed-clients-3744e\nIN ACCEPT -source +more-clients\n",
        ),
    ),
    error(
        "too-many-problems",
        "a file with very many problems",
        "Only the first 1,000 errors, warnings and notes of a file are shown: the rest is mostly of the same kind. "
        "Each line is still checked, and left out if it is wrong.",
        UNTRIED,
        Example(GUEST, ON + "[RULES]\n" + "IN\n" * 1001, ON + "[RULES]\n"),
    ),
)
