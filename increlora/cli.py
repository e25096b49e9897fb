"""The command line. Every command is a few lines around a function of the package.

Exit codes: 0 done, 1 something failed (a run, a check of records), 2 the user's to mend (one line says what).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from increlora.errors import ConfigError, IncreLoraError, unknown

RECORDS = "results/runs"
CONFIG = "config/config.yaml"


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
        for chatty in ("httpx", "urllib3", "filelock", "fsspec", "matplotlib", "fontTools"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        code = options.command(options) or 0
        sys.stdout.flush()
        return code
    except IncreLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `head` has seen enough; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130


def _plan(options: argparse.Namespace) -> None:
    from increlora.study.plan import as_text, plan, write_csv

    rows = plan(_study(options))
    if options.csv:
        write_csv(rows, options.csv)
    print(as_text(rows))


def _check(options: argparse.Namespace) -> None:
    from increlora.study.plan import check

    study = _study(options)
    check(study)
    print(f"{study.study}: {len(study.cells())} cells, {len(study.runs())} runs, all budgets fit")


def _verify(options: argparse.Namespace) -> int:
    from increlora.study.verify import unexpected, verify

    study = _study(options)
    findings = verify(study, _records(options))
    for finding in findings:
        if finding.status != "ok":
            print(f"{finding.status:<11}{finding.path}" + (f"  ({finding.detail})" if finding.detail else ""))
    for path in unexpected(study, options.records):
        print(f"{'unused':<11}{path}  (no run of this study)")
    counts = Counter(finding.status for finding in findings)
    print(f"{study.study}: " + ", ".join(f"{number} {status}" for status, number in counts.items()))
    return int(counts["ok"] != len(findings))


def _train(options: argparse.Namespace) -> int:
    from increlora.training.job import run_job

    cell = _json("--settings", options.settings)
    failed = run_job(cell, options.seeds, options.records, options.ranks_from, progress=not options.quiet)
    return int(bool(failed))


def _run(options: argparse.Namespace) -> int:
    from increlora.study.expand import cell_settings, sources
    from increlora.training.job import Meter, run_job

    study = _study(options)
    cells = list(study.cells())
    for name in ("task", "method", "budget"):
        known = dict.fromkeys(getattr(cell, name) for cell in cells)
        wanted = getattr(options, name) or list(known)
        for value in wanted:
            if value not in known:
                raise unknown(f"--{name}", value, known)
        cells = [cell for cell in cells if getattr(cell, name) in wanted]
    seeds = options.seed or study.seeds
    meter = Meter(len(cells) * len(seeds))
    failed = []
    for cell in cells:
        cell = cell._replace(seeds=tuple(seeds))
        records, ranks_from = (
            [study.settings(*one[:3], seed).record_path(options.records) for one in group for seed in seeds]
            for group in ((cell,), sources(study, cell))
        )
        settings = cell_settings(study, cell)
        failed += run_job(settings, seeds, records, ranks_from, progress=not options.quiet, meter=meter)
    return int(bool(failed))


def _pretrain(options: argparse.Namespace) -> None:
    from increlora.study.config import pretrain_settings
    from increlora.study.expand import backbone_path

    if options.settings:
        settings, out = _json("--settings", options.settings), options.out
    else:
        backbone = _study(options).backbone
        settings, out = backbone.pretrain, options.out or backbone_path(backbone)
    if settings is None or out is None:
        raise ConfigError("backbone.pretrain", "is not set: this study's backbone comes ready-made")
    chosen = pretrain_settings(settings)
    from increlora.training.pretrain import pretrain

    pretrain(chosen, Path(out), progress=not options.quiet)


def _tables(options: argparse.Namespace) -> None:
    from increlora.report import frame, tables

    study, records = _study(options), _records(options)
    for path in (
        frame.write_runs(records, study, options.out),
        *tables.build(study, records, options.out),
    ):
        print(path)


def _figures(options: argparse.Namespace) -> None:
    from increlora.report import figures

    for path in figures.build(_study(options), _records(options), options.out):
        print(path)


def _show(options: argparse.Namespace) -> None:
    from increlora.report.show import show

    print(show(_study(options), _records(options), options.only))


def _corpus(options: argparse.Namespace) -> None:
    from increlora.glue.corpus import write_folder

    write_folder(options.out, seed=options.seed)


def _adopt(options: argparse.Namespace) -> None:
    from increlora.training.store import Store

    store = Store()
    print(f"{store.adopt(options.records)} finished runs taken into {store.root}")


def _schema(options: argparse.Namespace) -> None:
    from increlora.study.config import Study

    text = json.dumps(Study.model_json_schema(), indent=2) + "\n"
    if options.out:
        Path(options.out).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


def _study(options: argparse.Namespace) -> Any:
    from increlora.study.config import load_study

    return load_study(*options.config)


def _records(options: argparse.Namespace) -> str:
    """The folder of records; the default one may not be there yet."""
    if options.records != RECORDS and not Path(options.records).is_dir():
        raise ConfigError("--records", f"got {options.records!r}: no such folder")
    return options.records


def _json(option: str, text: str) -> dict[str, Any]:
    """A JSON object given on the command line."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ConfigError(option, f"is not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise ConfigError(option, f"must be a JSON object, not {type(content).__name__}")
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="increlora", description="IncreLoRA and the study that reproduces its paper.")
    parser.add_argument("--verbose", action="store_true", help="log more, other libraries included")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Any, text: str, *, config: bool = False, records: bool = False) -> Any:
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(command=function)
        if config:
            text = f"YAML file, or inline YAML '{{...}}'; later ones win (default: {CONFIG})"
            found.add_argument("config", nargs="*", default=[CONFIG], metavar="CONFIG", help=text)
        if records:
            found.add_argument("--records", default=RECORDS, metavar="FOLDER", help=f"finished runs ({RECORDS})")
        return found

    plan = command("plan", _plan, "what a study will cost, and whether its budgets fit", config=True)
    plan.add_argument("--csv", metavar="FILE", help="also write the plan there")
    command("check", _check, "whether a study's config is right and its budgets fit the backbone", config=True)
    command("verify", _verify, "compare finished runs with a study's config", config=True, records=True)

    train = command("train", _train, "train the runs of one cell (what the workflow calls)")
    train.add_argument("--settings", required=True, metavar="JSON", help="settings of the cell, without a seed")
    train.add_argument("--seeds", required=True, nargs="+", type=int, metavar="SEED")
    train.add_argument("--records", required=True, nargs="+", metavar="FILE", help="where each seed's record goes")
    train.add_argument(
        "--ranks-from", nargs="*", default=(), metavar="FILE", help="record to take ranks from, per seed"
    )

    run = command("run", _run, "train runs of a study by name", config=True, records=True)
    run.add_argument("--task", nargs="+", help="only these tasks")
    run.add_argument("--method", nargs="+", help="only these method variants")
    run.add_argument("--budget", type=int, nargs="+", help="only these average ranks, or bottleneck widths")
    run.add_argument("--seed", type=int, nargs="+", help="these seeds (the study's)")

    pretrain = command("pretrain", _pretrain, "pretrain a study's own backbone", config=True)
    pretrain.add_argument("--settings", metavar="JSON", help="settings, instead of a config")
    pretrain.add_argument("--out", metavar="FOLDER", help="where it goes (default: where the study looks for it)")

    tables = command("tables", _tables, "finished runs to tables", config=True, records=True)
    tables.add_argument("--out", default="results", metavar="FOLDER")
    figures = command("figures", _figures, "finished runs to figures", config=True, records=True)
    figures.add_argument("--out", default="figures", metavar="FOLDER")

    show = command("show", _show, "tables in the terminal", config=True, records=True)
    show.add_argument("--only", metavar="TABLE", help="table1, table2, table3 or cost")

    corpus = command("corpus", _corpus, "write the built-in corpus as a folder that `datasets` loads")
    corpus.add_argument("out", metavar="FOLDER")
    corpus.add_argument("--seed", type=int, default=0)

    store = command("store", None, "the store of finished runs")
    adopt = store.add_subparsers(required=True, metavar="COMMAND").add_parser("adopt", help="take in finished runs")
    adopt.add_argument("records", nargs="?", default=RECORDS, metavar="FOLDER")
    adopt.set_defaults(command=_adopt)

    schema = command("schema", _schema, "JSON schema of the configuration")
    schema.add_argument("--out", metavar="FILE")
    return parser
