"""The verb that checks the installation."""

from __future__ import annotations

import json

import click

from bonecaffe.cli.group import main, print_table


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Show what is installed and what is missing.

    Each missing part has a command that installs it. Exits 1 if a run would fail.
    """
    from bonecaffe import doctor as examination

    findings = examination.examine()
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        print_table(
            "bonecaffe doctor",
            ["", "what", "found", "remedy"],
            [[finding.mark, finding.what, finding.found, finding.remedy] for finding in findings],
        )
    if any(finding.state == "missing" for finding in findings):
        raise click.exceptions.Exit(1)
