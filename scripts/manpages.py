"""Write the manual pages: ``scripts/manpages.py FOLDER``. With ``--options``, renew docs/reference/fw-files.md.

pvefw(8) and a page for each command are made of the commands as click has them, pvefw.fw(5) of that page with the
options as the code declares them, pvefw-differences(7) of the manual's pages on differences, and pvefw-diagnostics(7)
of the declared codes. Their date comes from $SOURCE_DATE_EPOCH, or is today.
"""

from __future__ import annotations

import os
import re
import sys
import textwrap
import time
import tomllib
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

CHECKOUT: Final = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(CHECKOUT))

from pvefw_nft.cli import cli  # noqa: E402 - found in the checkout that this script belongs to
from pvefw_nft.cli.command import Command  # noqa: E402
from pvefw_nft.cli.manual import page as diagnostics  # noqa: E402
from pvefw_nft.config import macros  # noqa: E402
from pvefw_nft.config.options import OPTIONS  # noqa: E402
from pvefw_nft.config.rule_fields import COLUMN_HEADINGS, RULE_FIELDS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS: Final = CHECKOUT / "docs"
MARK: Final = "<!-- made by scripts/manpages.py --options -->\n"
PART: Final = re.compile(
    r"(<!-- made by scripts/manpages\.py --options: ([\w ]+) -->\n\n).*?(\n<!-- end -->\n)", re.DOTALL
)
"""A part of fw-files.md above the mark, named by a key of :func:`rule_parts`."""
ROFF: Final = {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}
EXIT_STATUS: Final = (
    ("0", "Done, and nothing to report."),
    ("1", "The configuration has problems, rulesets differ, or a packet got an unexpected verdict."),
    ("2", "A mistake on the command line."),
    ("3", "The host refused, or is not in the state that is needed."),
    ("4", "Another run of pvefw holds the lock."),
    ("5", "Not decided: not everything could be compared or simulated."),
)
PAGES_OF_DOCS: Final = {
    "commands.md": "pvefw(8)",
    "fw-files.md": "pvefw.fw(5)",
    "language.md": "pvefw-differences(7)",
    "differences-from-proxmox.md": "pvefw-differences(7)",
    "diagnostics.md": "pvefw-diagnostics(7)",
}
"""Pages of the manual by the manual pages that are made of them."""
SPAN: Final = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\[([^\]]*)\]\(([^)]*)\)")


def escaped(text: str) -> str:
    """Return text as troff prints it, other than at the start of a line."""
    return "".join(ROFF.get(c, c) if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)


def inline(markdown: str) -> str:
    """Return a line of Markdown as troff: code and strong words bold, links as their words or the page they lead to."""
    parts, end = [], 0
    for span in SPAN.finditer(markdown):
        parts.append(escaped(markdown[end : span.start()]))
        code, strong, link, target = span.groups()
        if page := PAGES_OF_DOCS.get((target or "").rpartition("/")[2]):
            parts.append(reference(page))
        else:
            parts.append(inline(link) if link is not None else f"\\fB{escaped(code or strong)}\\fR")
        end = span.end()
    made = "".join([*parts, escaped(markdown[end:])])
    return f"\\&{made}" if made.startswith((".", "\\(aq")) else made


def reference(page: str) -> str:
    """Return the name of another page, as manual pages write it."""
    name, _, section = page.partition("(")
    return f"\\fB{escaped(name)}\\fR({section}"


def tag(text: str) -> Iterator[str]:
    """Yield the start of a tagged paragraph. Text never follows a tag that leaves no room for a blank column."""
    yield from (".TP", text)
    if len(re.sub(r"\\f[BR]|\\\(..|\\", "", text)) in (5, 6):
        yield ".br"


def rendered(markdown: str) -> Iterator[str]:
    """Yield the lines of a manual page for headings, paragraphs, lists, tables and code of Markdown."""
    blocks = re.findall(r"```\w*\n.*?\n?```|(?:[^\n]+\n?)+", markdown.replace("\n```", "\n\n```"), re.DOTALL)
    after_heading = True
    for block in (block.strip("\n") for block in blocks):
        lines = block.splitlines()
        if block.startswith("```"):
            yield from () if after_heading else (".PP",)
            yield from (".nf", ".RS 4", *(f"\\&{escaped(line)}" for line in lines[1:-1] if line), ".RE", ".fi")
        elif heading := re.match(r"(#+) (.*)", block):
            words = heading[2] if "`" in heading[2] or len(heading[1]) > 2 else heading[2].upper()
            yield f'.{"SH" if len(heading[1]) <= 2 else "SS"} "{inline(words)}"'
            after_heading = True
            if lines[1:]:
                yield from rendered("\n".join(lines[1:]))
            continue
        elif block.startswith("|"):
            yield from table(lines)
        elif block.startswith("- "):
            for item in re.split(r"\n(?=- )", block):
                yield from (".IP \\(bu 2", inline(" ".join(item[2:].split())))
        elif block.startswith(("![", "<!--")):
            continue
        else:
            if not after_heading:
                yield ".PP"
            yield inline(" ".join(block.split()))
        after_heading = False


def table(lines: list[str]) -> Iterator[str]:
    """Yield a table: the first column as tags, the rest below, each cell after its heading if there are several."""
    rows = [
        [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")] for line in lines
    ]
    heads, rows = rows[0], rows[2:]
    for row in rows:
        if len(row) == 2:
            yield from (*tag(inline(row[0])), inline(row[1]))
            continue
        yield from (".TP", inline(row[0]), ".br")
        cells = [f"{inline(head)}: {inline(cell)}" for head, cell in zip(heads[1:], row[1:], strict=True)]
        yield "\n.br\n".join(cells)


def header(name: str, section: int) -> Iterator[str]:
    """Yield the first line of a page."""
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    yield f'.TH "{escaped(name.upper())}" "{section}" "{date}" "pvefw {version}" "pvefw"'
    # names of files, options and commands are copied and typed: do not part or stretch them
    yield from (".nh", ".ad l")
    yield ".SH NAME"


def command_page(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    """Yield the page of one command; the commands of a group are sections of its page."""
    yield from header(f"pvefw-{name}", 8)
    text = (command.help or "").strip()
    summary = text[:1].lower() + text[1:].split("\n\n", 1)[0].split(". ")[0].rstrip(".").replace("\n", " ")
    yield f"pvefw\\-{escaped(name)} \\- {inline(' '.join(summary.split()))}"
    yield from usage(name, command, parent)
    if isinstance(command, click.Group):
        ctx = click.Context(command, info_name=name, parent=parent)
        for below in command.list_commands(ctx):
            made = command.get_command(ctx, below)
            if made is not None and not made.hidden:
                yield f'.SH "{escaped(below.upper())}"'
                yield from described(made, ctx, below)
    yield from examples(command)
    yield from exit_status()
    yield from see_also("pvefw(8)", "pvefw.fw(5)")


def usage(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    """Yield the synopsis of a command, its description and its options."""
    ctx = click.Context(command, info_name=name, parent=parent)
    yield from (".SH SYNOPSIS", synopsis(command, ctx), ".SH DESCRIPTION")
    yield from paragraphs(command.help or "")
    yield ".SH OPTIONS"
    yield from options(command, ctx)


def described(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    """Yield a command of a group within the group's page."""
    ctx = click.Context(command, info_name=name, parent=parent)
    yield from (synopsis(command, ctx), ".PP")
    yield from paragraphs(command.help or "")
    yield from options(command, ctx)


def synopsis(command: click.Command, ctx: click.Context) -> str:
    """Return the line that tells how a command is called."""
    return f"\\fB{escaped(ctx.command_path)}\\fR {escaped(' '.join(command.collect_usage_pieces(ctx)))}"


def paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text."""
    for number, part in enumerate(text.strip().split("\n\n")):
        if number:
            yield ".PP"
        yield inline(" ".join(part.replace("\b", "").split()))


def options(command: click.Command, ctx: click.Context) -> Iterator[str]:
    """Yield the options of a command as its --help has them."""
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            yield from tag(f"\\fB{escaped(record[0])}\\fR")
            yield inline(" ".join(record[1].split())) or "\\&"


def examples(command: click.Command) -> Iterator[str]:
    """Yield the examples of a command, or of a group's commands, as their --help has them."""
    below = command.commands.values() if isinstance(command, click.Group) else [command]
    lines = [example for one in below if isinstance(one, Command) for example in one.examples]
    if lines:
        yield ".SH EXAMPLES"
    for line, purpose in lines:
        yield from (".TP", f"\\fB{escaped(line)}\\fR", inline(purpose))


def exit_status() -> Iterator[str]:
    """Yield the exit codes, which all commands share."""
    yield '.SH "EXIT STATUS"'
    for code, meaning in EXIT_STATUS:
        yield from (".TP", code, meaning)


def see_also(*pages: str) -> Iterator[str]:
    """Yield the section that names other pages."""
    yield from (".SH SEE ALSO", ",\n".join(map(reference, pages)))


def main_page(context: click.Context) -> Iterator[str]:
    """Yield pvefw(8): the purpose of pvefw, and its commands."""
    yield from header("pvefw", 8)
    yield "pvefw \\- firewall of KVM and LXC hosts from Proxmox VE firewall files"
    yield from (".SH SYNOPSIS", "\\fBpvefw\\fR [OPTIONS] COMMAND [ARGS]...", ".SH DESCRIPTION")
    yield from paragraphs(cli.help or "")
    yield from (".PP", "Installing pvefw changes no rule. Over ssh, give commands that change rules the option")
    yield from ("\\fB\\-\\-confirm 60\\fR:", "without \\fBpvefw confirm\\fR within a minute, everything is as before.")
    yield ".SH COMMANDS"
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        short = command.get_short_help_str(200) if command is not None else ""
        yield from (".TP", f"\\fBpvefw\\-{escaped(name)}\\fR(8)", inline(short))
    yield ".SH OPTIONS"
    yield from options(cli, context)
    yield from exit_status()
    yield ".SH FILES"
    yield from table(["| file | what |", "| --- | --- |", *files_read()])
    yield from see_also("pvefw.fw(5)", "pvefw-differences(7)", "pvefw-diagnostics(7)", "nft(8)", "iptables(8)")


def files_read() -> Iterator[str]:
    """Yield the rows of the manual's tables of files."""
    text = (DOCS / "reference" / "files.md").read_text("utf-8").partition("## Kernel settings")[0]
    yield from (line for line in text.splitlines() if line.startswith("| `"))


def rule_parts() -> dict[str, str]:
    """Return the parts of fw-files.md about the fields of rules as Markdown."""
    # NUL holds an option and its value together on one line
    options = " ".join(f"[{field.options[0]}\0{field.placeholder}]" for field in RULE_FIELDS)
    named = textwrap.fill(f"TYPE ACTION {options}", 65, subsequent_indent=" " * 12, break_on_hyphens=False)
    rows = [
        f"| {', '.join(f'`{field.options[0]}`' for field in fields)} | {takes} |"
        for takes, fields in groupby(RULE_FIELDS, key=lambda field: field.takes)
    ]
    return {
        "named form": f"```text\n{named}\n```\n".replace("\0", " "),
        "options of rules": "\n".join(["| option | value |", "| --- | --- |", *rows, ""]),
        "columns": f"```text\nTYPE ACTION {' '.join(COLUMN_HEADINGS.values())}\n```\n",
    }


def renewed(page: str) -> str:
    """Return fw-files.md with the parts that are made of declarations."""
    parts = rule_parts()
    above = PART.sub(lambda found: found[1] + parts[found[2]] + found[3], page.partition(MARK)[0])
    return above + MARK + "\n" + option_tables()


def option_tables() -> str:
    """Return the tables of options and the list of macros as Markdown."""
    parts = [f"{', '.join(f'`{name}`' for name in sorted(macros.names(), key=str.lower))}.\n"]
    for kind, options in OPTIONS.items():
        parts.append(f"## Options of {kind.value}\n")
        rows = [
            f"| `{made.name}` | {made.takes.replace('|', chr(92) + '|')} | {made.default_text} | {made.effect} |"
            for made in options.values()
        ]
        parts.append("\n".join(["| option | takes | default | effect |", "| --- | --- | --- | --- |", *rows, ""]))
    return "\n".join(parts)


def language_page() -> Iterator[str]:
    """Yield pvefw.fw(5)."""
    text = (DOCS / "reference" / "fw-files.md").read_text("utf-8")
    yield from header("pvefw.fw", 5)
    yield "pvefw.fw \\- firewall files of Proxmox VE, as pvefw reads them"
    yield from (".SH DESCRIPTION", *rendered(text.partition("\n")[2].partition(MARK)[0] + "\n" + option_tables()))
    yield from see_also("pvefw(8)", "pvefw-differences(7)", "pvefw-diagnostics(7)")


def differences_page() -> Iterator[str]:
    """Yield pvefw-differences(7)."""
    language = (DOCS / "language.md").read_text("utf-8").partition("\n")[2].partition("\n## ")[0]
    proxmox = (DOCS / "reference" / "differences-from-proxmox.md").read_text("utf-8").partition("this page |")[2]
    nft = re.search(
        r"(?ms)^## Where it differs from the iptables ruleset\n(.*?)(?=^## |\Z)", (DOCS / "nft.md").read_text("utf-8")
    )
    yield from header("pvefw-differences", 7)
    yield "pvefw\\-differences \\- what differs from Proxmox VE's firewalls, and between the rulesets of pvefw"
    language = re.sub(r" The table is printed by.*?not here\.", "", language, flags=re.DOTALL)  # for developers
    yield from (".SH DESCRIPTION", *rendered(language))
    yield from (".SH FILES WITH MISTAKES", *rendered(proxmox))
    yield from (".SH THE NFT RULESET AND THE IPTABLES RULESET", *rendered(nft[1] if nft else ""))
    yield from see_also("pvefw(8)", "pvefw.fw(5)")


def diagnostics_page() -> Iterator[str]:
    """Yield pvefw-diagnostics(7)."""
    yield from header("pvefw-diagnostics", 7)
    yield "pvefw\\-diagnostics \\- what pvefw check and pvefw compile report, by code"
    yield from (".SH DESCRIPTION", *rendered(diagnostics().partition("\n")[2]))
    yield from see_also("pvefw(8)", "pvefw.fw(5)")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the file name and text of each page."""
    context = click.Context(cli, info_name="pvefw")
    made = {"pvefw.8": main_page(context), "pvefw.fw.5": language_page()}
    made |= {"pvefw-differences.7": differences_page(), "pvefw-diagnostics.7": diagnostics_page()}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if command is not None:
            made[f"pvefw-{name}.8"] = command_page(name, command, context)
    for name, lines in made.items():
        yield name, "\n".join(lines) + "\n"


def main() -> int:
    """Write the pages, or renew the tables of options."""
    if sys.argv[1:] == ["--options"]:
        path = DOCS / "reference" / "fw-files.md"
        path.write_text(renewed(path.read_text("utf-8")), "utf-8")
        return 0
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages():
        (folder / name).write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
