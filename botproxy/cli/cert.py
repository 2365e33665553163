"""`botproxy cert`: the certificates of the running botproxy.

`status` shows them, `reload` takes over what the files hold now, `rollback` goes back.
All three ask the keeper and add nothing of their own but words and exit codes:

    0 done    3 refused, the current certificate is served on
    1 failed  4 rolled back after it was served
    2 usage   5 served, but not every worker could be asked over the listener
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import click

from botproxy.cli import report
from botproxy.cli.ask import NoAnswerError, ask, foreign, options, say_no_answer
from botproxy.cli.verb import Entry, Verb, Verbs

PATIENCE = 120.0
"""Seconds that a change may take; it takes less than one."""
_CODES = {"unchanged": 0, "active": 0, "failed": 1, "rejected": 3, "rolled_back": 4, "unverified": 5}
_WORST = (1, 4, 5, 3, 0)
"""Exit codes, the one that wins first."""

command = Verbs(
    table={
        "status": Entry("what is served, until when, and what the files hold", "botproxy.cli.cert:status"),
        "reload": Entry("look at the files now", "botproxy.cli.cert:reload"),
        "rollback": Entry("go back to an earlier certificate", "botproxy.cli.cert:rollback"),
    },
    examples=(
        ("botproxy cert status", "what is served, until when, by how many workers"),
        ("botproxy cert reload --wait", "take over what the files hold, and say what became of it"),
    ),
    help="the certificates of the running botproxy",
)


@click.command(
    cls=Verb,
    help="what is served, until when, and what the files hold",
    examples=(
        ("botproxy cert status", "every certificate"),
        ("botproxy cert status --json | jq '.certificates[].not_after'", "the same for machines"),
    ),
)
@options
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, for machines.")
def status(config: str | None, admin: str | None, as_json: bool) -> int:
    try:
        answer = _certificates(ask(config, admin, "/-/certificates"))
    except NoAnswerError as error:
        return say_no_answer(error)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return 0
    for certificate in answer["certificates"]:
        _print_status(certificate)
    if answer.get("watch") == "poll":
        click.echo("files are polled: the kernel does not tell of changes, or is not asked")
    return 0


@click.command(
    cls=Verb,
    help="look at the certificate files now, instead of waiting until their change is noticed",
    examples=(
        ("botproxy cert reload --wait", "and say what became of it; the exit code says it, too"),
        ("botproxy cert reload --wait --force bot.example.com", "although it is worse than the current one"),
    ),
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@options
@click.option("--wait", is_flag=True, help="Until every worker serves it, or it is known why not.")
@click.option("--force", is_flag=True, help="Also when the guard against worse certificates objects.")
@click.option(
    "--compromised",
    is_flag=True,
    help="The old key is in wrong hands: end all its sessions, and remove it from the state directory.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, for machines.")
def reload(
    names: tuple[str, ...],
    config: str | None,
    admin: str | None,
    wait: bool,
    force: bool,
    compromised: bool,
    as_json: bool,
) -> int:
    query = [("name", name) for name in names]
    query += [
        (key, "1") for key, on in (("wait", wait), ("force", force), ("compromised", compromised)) if on
    ]
    return change(config, admin, f"/-/reload?{urlencode(query)}", as_json)


@click.command(
    cls=Verb,
    help="go back to an earlier certificate; what the files hold is left alone until it changes",
    examples=(
        ("botproxy cert rollback", "to the one before, where there is only one certificate"),
        ("botproxy cert rollback bot.example.com --to 7", 'to a generation that "cert status" lists'),
    ),
)
@click.argument("name", required=False, metavar="[NAME]")
@options
@click.option("--to", metavar="N", help="The generation.  [the certificate before]")
@click.option("--force", is_flag=True, help="Also to one that has expired, or is not valid yet.")
@click.option("--json", "as_json", is_flag=True, help="Print the whole answer, for machines.")
def rollback(
    name: str | None, config: str | None, admin: str | None, to: str | None, force: bool, as_json: bool
) -> int:
    query = [(key, value) for key, value in (("name", name), ("to", to)) if value is not None]
    query += [("force", "1")] if force else []
    return change(config, admin, f"/-/rollback?{urlencode(query)}", as_json)


def change(config: str | None, admin: str | None, target: str, as_json: bool) -> int:
    """Have the keeper change certificates, and say what became of each; the exit code."""
    try:
        answer = ask(config, admin, target, "POST", PATIENCE)
        if answer.get("taken") is not True:
            _certificates(answer)
    except NoAnswerError as error:
        return say_no_answer(error)
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    elif answer.get("taken"):
        click.echo('the files are looked at; "botproxy cert status" shows what became of it')
    return say_changes(answer, as_json=as_json)


def say_changes(answer: dict[str, Any], *, as_json: bool) -> int:
    """What became of each certificate, in words unless it was said as JSON; the exit code."""
    changes = answer.get("certificates", [])
    for each in [] if as_json else changes:
        _print_change(each)
    codes = {_CODES[each["outcome"]] for each in changes}
    for name in answer.get("old_keys", []):
        hint = "have a certificate issued for a new key (certbot: without --reuse-key), then do this again"
        report.error(
            f"{name}: the key that is served has not been replaced: it may be the one in wrong hands", hint
        )
        codes.add(1)
    if problem := answer.get("removal"):
        hint = "see what is wrong there; it is tried again, and botproxy health says when it is gone"
        report.error(f"the old key is still in the state directory: {problem}", hint)
        codes.add(1)
    if problem := answer.get("rotation"):
        report.error(f"the session ticket keys stay the old ones: {problem}", "botproxy tickets rotate")
        codes.add(1)
    return next(code for code in _WORST if code in codes | {0})


# Private


def _certificates(answer: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(answer.get("certificates"), list):
        raise foreign()
    return answer


_WORDS = {
    "unchanged": "the files hold what is served (generation {generation})",
    "active": "every worker serves the new certificate (generation {generation})",
    "unverified": "the workers serve the new certificate (generation {generation}), not all could be asked",
    "rejected": "refused, generation {generation} is served on",
    "rolled_back": "rolled back to generation {generation}",
    "failed": "nothing was changed",
}


def _print_change(each: dict[str, Any]) -> None:
    words = _WORDS[each["outcome"]].format(generation=each["generation"])
    if _CODES[each["outcome"]] == 0:
        click.echo(report.printable(f"{each['name']}: {words}"))
        return
    rule = f" ({each['rule']})" if each["rule"] else ""
    report.say("error", f"{each['name']}: {words}{rule}: {each['says']}")
    if each["hint"]:
        report.say("hint", each["hint"])


def _print_status(certificate: dict[str, Any]) -> None:
    click.echo(report.printable(f"{certificate['name']}: {certificate['state']}"))
    until = f"until {certificate['not_after'][:10]}, renewal due {certificate['renewal_due'][:10]}"
    serving = f"{certificate['served_by']} of {certificate['workers']} workers"
    kept = ", ".join(map(str, certificate["kept"])) or "none"
    for label, value in (
        ("names", ", ".join(certificate["names"])),
        ("file", certificate["chain"]),
        ("issuer", certificate["issuer"]),
        ("serial", certificate["serial"]),
        ("valid", f"{until} ({certificate['stage'].replace('_', ' ')})"),
        ("served", f"by {serving}, generation {certificate['generation']} (kept: {kept})"),
    ):
        click.echo(report.printable(f"  {label:<8}{value}"))
    if certificate["refused"]:
        refused = certificate["refused"]
        report.say(
            "error", f"{certificate['name']}: the files are refused ({refused['rule']}): {refused['says']}"
        )
        report.say("hint", refused["hint"])
    for unsettled in certificate["unsettled"] or ():
        report.say("error", f"{certificate['name']}: {unsettled['problem']}")
        if unsettled["hint"]:
            report.say("hint", unsettled["hint"])
