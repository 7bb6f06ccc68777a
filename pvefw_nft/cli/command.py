"""The manner that all commands have: ``-q``, ``-v``, ``--format json``, colour, and examples below their help."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from pvefw_nft.cli import console
from pvefw_nft.cli.examples import EXAMPLES
from pvefw_nft.errors import PvefwError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Command(click.Command):
    """A command of pvefw.

    ``examples`` are command lines for the help, each with its purpose. With ``answers`` the command has ``--format
    json``: it prints by :mod:`pvefw_nft.cli.console`, and ends with one object that reports its work.
    """

    def __init__(
        self,
        *arguments: Any,  # noqa: ANN401 - click's
        examples: Sequence[tuple[str, str]] = (),
        answers: bool = False,
        **options: Any,  # noqa: ANN401 - click's
    ) -> None:
        """Make the command, with the options that all have and this one does not declare itself."""
        super().__init__(*arguments, **options)
        self.examples = tuple(examples)
        self._answers = answers
        own = {name for parameter in self.params for name in parameter.opts}
        self.params += [option for option in _common(answers=answers) if not own & {*option.opts}]

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's
        """Run the command. With ``--format json`` print its answer, also after a failure, and exit with its code."""
        chosen = _console_of(ctx)
        chosen.verbose = chosen.verbose or bool(ctx.params.get("verbose"))
        token = console.use(chosen)
        try:
            if self._answers and chosen.form == "json":
                return self._invoke_for_json(ctx, chosen)
            return super().invoke(ctx)
        finally:
            console.leave(token)

    def _invoke_for_json(self, ctx: click.Context, chosen: console.Console) -> int:
        """Run the command and print its answer as one JSON object, errors included. Return the exit code."""
        failure: dict[str, str | None] | None = None
        try:
            code = super().invoke(ctx)
        except click.exceptions.Exit as end:
            code = end.exit_code
        except PvefwError as error:
            code, failure = error.exit_code, {"message": error.message, "help": error.hint}
        code = code if isinstance(code, int) else 0
        document = {
            "schema": f"pvefw-{self.name}/1",
            "exit_code": code,
            **chosen.facts,
            "messages": chosen.messages,
            "error": failure,
        }
        click.echo(json.dumps(document, indent=1))
        return code

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples below the options."""
        super().format_epilog(ctx, formatter)
        if not self.examples:
            return
        with formatter.section("Examples"):
            for line, purpose in self.examples:
                formatter.write_text(f"# {purpose}")
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def command(name: str, *, answers: bool = False) -> Callable[[Callable[..., Any]], Command]:
    """Make a function a command of pvefw; see :class:`Command`. Its examples are found by its name."""
    return click.command(name, cls=Command, examples=EXAMPLES[name], answers=answers)


def _console_of(ctx: click.Context) -> console.Console:
    made: console.Console = ctx.meta.setdefault("pvefw.console", console.Console())
    return made


def _set(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:  # noqa: ANN401 - any option's
    setattr(_console_of(ctx), parameter.name or "", value)


def _common(*, answers: bool) -> list[click.Option]:
    options = [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_set,
            help="Print warnings and errors only.",
        ),
        click.Option(["-v", "--verbose"], is_flag=True, expose_value=False, callback=_set, help="Print details, too."),
    ]
    if answers:
        options.insert(
            0,
            click.Option(
                ["--format", "form"],
                type=click.Choice(("text", "json")),
                default="text",
                expose_value=False,
                callback=_set,
                help="Default: text. json: one object at the end.",
            ),
        )
    return options
