"""The command line: parse, call one function, print. Options are generated from the classes in `options`."""

from __future__ import annotations

import inspect
import json
import sys
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, fields
from typing import Annotated, Any

import typer

from raysegment.choices import is_repeated, load_options, option_name, recipe_names, unwrap_optional
from raysegment.errors import EXIT_FAILED, EXIT_INTERRUPTED, InterruptedRunError, RaysegmentError
from raysegment.options import (
    CohortCheckOptions,
    CommandOptions,
    CompareOptions,
    DemoOptions,
    EvaluateOptions,
    ExportOptions,
    IndexOptions,
    InferOptions,
    MeasureOptions,
    ReportOptions,
    ResegmentOptions,
    TrainOptions,
    TuneOptions,
)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Trains U-Nets and segments archives of medical scans, on one machine or a Ray cluster. Research use, not a "
    "medical device.",
)

cohort = typer.Typer(help="Look at a cohort: what the next run would do.", rich_markup_mode=None)
app.add_typer(cohort, name="cohort")

Command = Callable[[Any], int]


def main() -> None:
    """Run the command line; the one place where errors become a line and an exit code."""
    if len(sys.argv) == 1:
        sys.argv.append("--help")
    try:
        code = app(standalone_mode=False)
    except RaysegmentError as error:
        _say_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _say_error(InterruptedRunError("interrupted; the same command goes on."))
        sys.exit(EXIT_INTERRUPTED)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.Abort:
        sys.exit(EXIT_FAILED)
    except Exception as error:
        _say_usage_error(error)
    sys.exit(code or 0)


def command(
    kind: type[Any], *, recipes: bool = False, group: typer.Typer = app, name: str | None = None
) -> Callable[[Command], Command]:
    """Register a function of loaded options as a command with the class's fields as its options."""

    def register(run: Command) -> Command:
        def call(**given: Any) -> int:
            recipe, job = given.pop("recipe", None), given.pop("job", None)
            return run(load_options(kind, given, recipe=recipe, job=job))

        call.__signature__ = inspect.Signature(_parameters(kind, recipes))  # type: ignore[attr-defined]
        call.__doc__ = inspect.getdoc(run)
        group.command(name or run.__name__)(call)
        return run

    return register


def _parameters(kind: type[Any], recipes: bool) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(kind)
    general = {item.name for item in fields(CommandOptions)}
    chosen = sorted(
        fields(kind), key=lambda item: (not item.metadata["positional"], item.name != "out", item.name in general)
    )
    parameters = [_parameter(item, hints[item.name]) for item in chosen]
    job = typer.Option(None, "--job", metavar="FILE.yaml", help="YAML file with options, named as here")
    parameters.append(_keyword("job", str | None, job))
    if recipes:
        help = f"options shipped with raysegment: {', '.join(recipe_names())}"
        parameters.append(_keyword("recipe", str | None, typer.Option(None, "--recipe", metavar="NAME", help=help)))
    return parameters


def _parameter(item: Field[Any], hint: Any) -> inspect.Parameter:
    """A field as typer sees it; None means that the user did not type it."""
    inner, _ = unwrap_optional(hint)
    help = _help_of(item)
    if item.metadata["positional"]:
        return _keyword(item.name, str | None, typer.Argument(None, metavar=item.name.upper(), help=help))
    if inner is bool:
        name = option_name(item.name)
        return _keyword(item.name, bool | None, typer.Option(None, f"{name}/--no-{name[2:]}", help=help))
    words = typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else ()
    metavar = "|".join(map(str, words)) if words else {int: "INT", float: "NUMBER"}.get(inner, "TEXT")
    kind = list[str] | None if is_repeated(inner) else str | None
    return _keyword(item.name, kind, typer.Option(None, option_name(item.name), metavar=metavar, help=help))


def _keyword(name: str, hint: Any, info: Any) -> inspect.Parameter:
    default, info.default = None, ...
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, info])


def _help_of(item: Field[Any]) -> str:
    unit = f" ({item.metadata['unit']})" if item.metadata["unit"] else ""
    required = item.default is MISSING
    default = "" if required or item.default is None or item.default is False else f" [default: {_show(item.default)}]"
    return f"{item.metadata['help']}{unit}{default}{' [required]' if required else ''}"


def _show(value: Any) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


@command(DemoOptions)
def demo(options: DemoOptions) -> int:
    """Make scans up, train on them, segment and report: no download, under two minutes."""
    from raysegment.commands.demo import demo as run

    return run(options).exit_code


@command(IndexOptions)
def index(options: IndexOptions) -> int:
    """Find the scans of an archive, say what looks wrong, and write the manifest."""
    from raysegment.commands.index import describe_index
    from raysegment.commands.index import index as run

    found = run(options)
    if options.json:
        print(json.dumps({**found.as_plain(), "manifest": options.out}))
        return 0
    written = [f"manifest written to {options.out}"] if options.out else []
    print("\n".join(describe_index(found) + written))
    return 0


@command(TrainOptions, recipes=True)
def train(options: TrainOptions) -> int:
    """Train a network on scans with references and write its bundle; goes on where it was stopped."""
    from raysegment.commands.train import train as run

    result = run(options)
    if result.already_done:
        _say(options.json, result.as_line)
    return result.exit_code


@command(TuneOptions)
def tune(options: TuneOptions) -> int:
    """Search the best options of a training on Ray Tune, and write them as a job file; goes on where it was stopped."""
    from raysegment.commands.tune import tune as run

    result = run(options)
    if result.already_done and not options.json:
        print(f"{result.folder} is finished: best trial {result.best_trial}, its options in {result.recipe}")
    _say_result(options.json, result)
    return result.exit_code


@command(InferOptions)
def infer(options: InferOptions) -> int:
    """Segment an archive into Parquet tables of masks and metrics; goes on where it was stopped."""
    from raysegment.commands.infer import infer as run

    result = run(options)
    _say_result(options.json, result)
    return result.exit_code


@command(EvaluateOptions)
def evaluate(options: EvaluateOptions) -> int:
    """Segment scans that have a reference and summarise how well masks and references agree."""
    from raysegment.commands.evaluate import evaluate as run
    from raysegment.runs.closing import describe_summary

    result = run(options)
    if not options.json:
        print("\n".join(describe_summary(result.summary, result.out)))
    _say_result(options.json, result)
    return result.exit_code


@command(MeasureOptions)
def measure(options: MeasureOptions) -> int:
    """Compare masks of an earlier run with references, without segmenting again; goes on where it was stopped."""
    from raysegment.commands.measure import measure as run
    from raysegment.runs.closing import describe_summary

    result = run(options)
    if not options.json:
        print("\n".join(describe_summary(result.summary, result.out)))
    _say_result(options.json, result)
    return result.exit_code


@command(CompareOptions)
def compare(options: CompareOptions) -> int:
    """Say what changed between two outputs of the same scans, mask by mask."""
    from raysegment.commands.compare import compare as run

    result = run(options)
    _say_result(options.json, result)
    return result.exit_code


@command(ResegmentOptions)
def resegment(options: ResegmentOptions) -> int:
    """Segment what is new or changed in a cohort, compare it with what was there, and make it current."""
    from raysegment.commands.resegment import resegment as run

    result = run(options)
    _say_result(options.json, result)
    return result.exit_code


@command(CohortCheckOptions, group=cohort, name="check")
def check_cohort(options: CohortCheckOptions) -> int:
    """Say what a run on a cohort would do, and roughly how long, without doing it."""
    from raysegment.commands.cohort_check import check_cohort as run

    result = run(options)
    _say_result(options.json, result)
    return result.exit_code


@command(ExportOptions)
def export(options: ExportOptions) -> int:
    """Write masks as image files under the names of their sources."""
    from raysegment.commands.export import describe_export, export_masks

    result = export_masks(options)
    for line in describe_export(result):
        _say(options.json, line)
    return result.exit_code


@command(ReportOptions)
def report(options: ReportOptions) -> int:
    """Draw the figures of a training or inference run anew."""
    from raysegment.commands.report import report as run

    result = run(options)
    for line in (*result.figures, *result.notes):
        _say(options.json, line)
    return result.exit_code


def _say_result(is_json: bool, result: Any) -> None:
    """The last JSON line of a run: what its result object holds."""
    if is_json:
        from raysegment.runs.record import as_json

        print(json.dumps(as_json({"event": "result", **asdict(result)})))


def _say(as_json: bool, text: str) -> None:
    print(json.dumps({"message": text}) if as_json else text)


def _say_error(error: RaysegmentError) -> None:
    text = " ".join(str(error).split())
    print(f"raysegment: {type(error).__name__}: {text}", file=sys.stderr)


def _say_usage_error(error: Exception) -> None:
    """Errors of the parser become one line and exit code 2; others are bugs and keep their traceback."""
    show = getattr(error, "format_message", None)
    if show is None:
        raise error
    print(f"raysegment: UsageError: {' '.join(show().split())} Try `raysegment --help`.", file=sys.stderr)
    sys.exit(getattr(error, "exit_code", 2))


if __name__ == "__main__":
    main()
