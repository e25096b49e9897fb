"""The command line. Every command is a few lines around a function of the package.

Commands import what they need: `increlora --help` takes 0.05 s; with pandas at the top it would take 1 s, with Torch 5.

Exit codes: 0 done, 1 something failed (a run, a check of records), 2 a mistake that the user can fix (one
line says how).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from increlora import __version__
from increlora.errors import ConfigError, IncreLoraError, sentence
from increlora.training.interrupt import end_with_parent

if TYPE_CHECKING:
    from increlora.report.results import Results
    from increlora.study.config import Study

RECORDS = "results/runs"
CONFIG = "config/config.yaml"
MOST_SHOWN = 10
"""Failed runs that are listed one by one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    if not options.verbose:
        for chatty in ("httpx", "httpx2", "urllib3", "filelock", "fsspec", "matplotlib", "fontTools"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    end_with_parent()
    try:
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader has gone, as `head` does: discard what is still buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (IncreLoraError, OSError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "increlora":
            raise
        needed = f"this needs {error.name}, one of the study's packages"
        print(f"error: {needed}: pip install -e '.[study]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _plan(options: argparse.Namespace) -> None:
    from increlora.study import speed
    from increlora.study.jobs import speed_table
    from increlora.study.plan import as_text, plan, write_csv
    from increlora.study.settings import all_runs

    study = _study(options)
    if options.measure:
        speed.write(list(speed.measure(study, progress=not options.quiet)), speed_table(study))
    rows = plan(study, speed.read(speed_table(study)))
    if options.csv:
        write_csv(rows, options.csv)
    print(as_text(rows))
    runs = all_runs(study)
    there = sum(run.record_path(_records(options)).is_file() for run in runs)
    print(f"{there} of {len(runs)} runs have a record in {options.records} (increlora verify checks them)")


def _check(options: argparse.Namespace) -> None:
    from increlora.study.budgets import check_budgets
    from increlora.study.cells import all_cells
    from increlora.study.inputs import check_inputs
    from increlora.training.places import check_writable

    study = _study(options)
    if options.here:
        check_writable(RECORDS)
    check_budgets(study)
    check_inputs(study, here=options.here)
    cells = len(all_cells(study))
    print(f"{study.study}: {cells} cells, {cells * len(study.seeds)} runs, all budgets fit, model and data are there")


def _verify(options: argparse.Namespace) -> int:
    from increlora.study.verify import unexpected, verify

    study = _study(options)
    findings = verify(study, _records(options))
    for finding in findings:
        status, detail, _ = finding.state
        if status != "ok":
            print(f"{status:<11}{finding.path}" + (f"  ({detail})" if detail else ""))
    for path in unexpected(study, options.records):
        print(f"{'unused':<11}{path}  (no run of this study)")
    counts = Counter(finding.state.status for finding in findings)
    print(f"{study.study}: " + ", ".join(f"{number} {status}" for status, number in counts.items()))
    return int(counts["ok"] != len(findings))


def _run(options: argparse.Namespace) -> int:
    from increlora.study.train import choose, train
    from increlora.training.places import check_writable

    if importlib.util.find_spec("evaluate") is None:
        raise ModuleNotFoundError("missing before anything is trained", name="evaluate")
    study = _study(options)
    check_writable(options.records)
    seeds = _seeds("--seed", options.seed)
    runs = choose(study, options.task, options.method, options.budget, seeds)
    failed = train(study, runs, options.records, progress=not options.quiet)
    if failed:
        print(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _failures(options: argparse.Namespace) -> None:
    from increlora.study.jobs import arguments_of, failures

    failed, absent = failures(_study(options))
    if not failed:
        print(f"{len(absent)} runs are not finished" if absent else "every run is finished", end="; ")
        print("none of them failed; see the messages above")
        return
    print(f"{len(failed)} run{'s' if len(failed) > 1 else ''} failed:")
    for run, reason, log in failed[:MOST_SHOWN]:
        print(f"  {run.label}: {reason}\n    log: {log}")
    if len(failed) > MOST_SHOWN:
        print(f"  and {len(failed) - MOST_SHOWN} more")
    if absent:
        print(f"{len(absent)} others are not trained yet.")
    again = ["increlora", "run", *options.config, *arguments_of(failed[0].run)]
    print(f"To repeat the first alone:  {shlex.join(again)}")
    print("To go on with all:          the same snakemake command again; finished runs are kept")


def _pretrain(options: argparse.Namespace) -> None:
    from increlora.study.checks import pretrain_settings
    from increlora.study.settings import backbone_path

    study = _study(options)
    settings = pretrain_settings(study)
    import torch

    from increlora.training.pretrain import pretrain

    torch.set_num_threads(study.execution.threads)
    pretrain(settings, Path(options.out or str(backbone_path(study.backbone))), progress=not options.quiet)


def _tables(options: argparse.Namespace) -> None:
    from increlora.report import tables

    for path in tables.build(_results(options), options.out):
        print(path)


def _published(options: argparse.Namespace) -> None:
    from increlora.report import published

    for path in published.table().write(Path(options.out)):
        print(path)


def _figures(options: argparse.Namespace) -> None:
    from increlora.report import figures

    for path in figures.build(_results(options), options.out):
        print(path)


def _show(options: argparse.Namespace) -> None:
    from increlora.report.tables import show

    width = shutil.get_terminal_size((120, 24)).columns
    print(show(_results(options), options.only, width=width, bold=sys.stdout.isatty()))


def _corpus(options: argparse.Namespace) -> None:
    from increlora.glue.corpus import write_folder

    (seed,) = _seeds("--seed", [options.seed])
    write_folder(options.out, seed=seed)


def _adopt(options: argparse.Namespace) -> None:
    from increlora.training.places import check_writable
    from increlora.training.store import Store

    check_writable(options.records)
    store = Store()
    print(f"{store.adopt(options.records)} finished runs taken into {store.root}")


def _schema(options: argparse.Namespace) -> None:
    from increlora.study.config import Study

    text = json.dumps(Study.model_json_schema(), indent=2) + "\n"
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def _study(options: argparse.Namespace) -> Study:
    from increlora.study.load import load_study

    return load_study(*options.config)


def _results(options: argparse.Namespace) -> Results:
    from increlora.report.results import Results

    return Results(_study(options), _records(options))


def _seeds(option: str, given: Sequence[str]) -> tuple[int, ...]:
    """Seeds from the command line, validated like those of a config."""
    from increlora.model import parsed
    from increlora.study.config import Seeds

    return parsed(Seeds, given, option) if given else ()


def _records(options: argparse.Namespace) -> str:
    """The folder of records; the default one may not be there yet."""
    if options.records != RECORDS and not Path(options.records).is_dir():
        raise ConfigError("--records", f"got {options.records!r}: no such folder")
    return options.records


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="increlora", description="IncreLoRA and the study that reproduces its paper.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log more, other libraries included")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str, *, config: bool = False, records: bool = False) -> Any:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(command=function)
        for option in ("--verbose", "--quiet"):  # after the command too
            found.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if config:
            text = f"YAML file, or inline YAML '{{...}}'; later ones win (default: {CONFIG})"
            found.add_argument("config", nargs="*", default=[CONFIG], metavar="CONFIG", help=text)
        if records:
            found.add_argument("--records", default=RECORDS, metavar="FOLDER", help=f"finished runs ({RECORDS})")
        return found

    plan = command("plan", _plan, "what a study will cost, and whether its budgets fit", config=True, records=True)
    plan.add_argument("--csv", metavar="FILE", help="also write the plan there")
    text = "time some steps of every kind of run on this machine first, for this plan and later ones"
    plan.add_argument("--measure", action="store_true", help=text)
    check = command("check", _check, "whether a study's config is valid and everything it needs is there", config=True)
    check.add_argument("--here", action="store_true", help="its runs will be on this machine: check GPUs and disk too")
    command("verify", _verify, "compare finished runs with a study's config", config=True, records=True)

    text = "train runs of a study by name (what the workflow calls); CONFIG comes before the options"
    run = command("run", _run, text, config=True, records=True)
    run.add_argument("--task", nargs="+", default=(), help="only these tasks")
    run.add_argument("--method", nargs="+", default=(), help="only these method variants")
    run.add_argument(
        "--budget", nargs="+", default=(), help="only these average ranks or bottleneck widths; `all` for none"
    )
    run.add_argument("--seed", nargs="+", default=(), help="these seeds (the study's)")
    command("failures", _failures, "which runs of a study failed, why, and what to do next", config=True)

    pretrain = command("pretrain", _pretrain, "pretrain a study's own backbone", config=True)
    pretrain.add_argument("--out", metavar="FOLDER", help="where it goes (default: where the study looks for it)")

    tables = command("tables", _tables, "finished runs to tables", config=True, records=True)
    tables.add_argument("--out", default="results", metavar="FOLDER")
    figures = command("figures", _figures, "finished runs to figures", config=True, records=True)
    figures.add_argument("--out", default="figures", metavar="FOLDER")
    published = command("published", _published, "the papers' values as a table, with their sources")
    published.add_argument("--out", default="results", metavar="FOLDER", help="where they are written (results)")

    show = command("show", _show, "tables in the terminal", config=True, records=True)
    show.add_argument("--only", metavar="TABLE", help="one of them: claims, table1, cost, ...")

    corpus = command("corpus", _corpus, "write the built-in corpus as a folder that `datasets` loads")
    corpus.add_argument("out", metavar="FOLDER")
    corpus.add_argument("--seed", default="0")

    store = command("store", None, "manage the store of finished runs")
    adopt = store.add_subparsers(required=True, metavar="COMMAND").add_parser("adopt", help="take in finished runs")
    adopt.add_argument("records", nargs="?", default=RECORDS, metavar="FOLDER")
    adopt.set_defaults(command=_adopt)

    schema = command("schema", _schema, "JSON schema of the configuration")
    schema.add_argument("--out", metavar="FILE")
    return parser
