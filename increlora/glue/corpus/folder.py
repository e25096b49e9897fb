"""The built-in corpus as a data set folder in the layout of ``nyu-mll/glue``, for `datasets.load_dataset`."""

from __future__ import annotations

from pathlib import Path

from increlora.files import whole_folder
from increlora.glue import corpus
from increlora.glue.tasks import TASKS


def write(path: Path, *, seed: int) -> None:
    """Write every task to ``path/<task>/<split>-00000-of-00001.parquet`` with a README that names the splits.

    The folder appears whole or not at all.

    Raises:
        FileExistsError: ``path`` exists.
    """
    from datasets import ClassLabel, Dataset, Features, Value

    if path.exists():
        raise FileExistsError(f"path: {path} exists; give a new folder")
    with whole_folder(path) as folder:
        header = ["---", "configs:"]
        for task in corpus.names():
            header += [f"- config_name: {task}", "  data_files:"]
            (folder / task).mkdir()
            for split, rows in corpus.generate(task, seed=seed).items():
                kinds = dict.fromkeys(rows[0], Value("string")) | {"idx": Value("int32")}
                names = TASKS[task].labels
                kinds["label"] = ClassLabel(names=list(names)) if names else Value("float32")
                file = f"{task}/{split}-00000-of-00001.parquet"
                Dataset.from_list(rows, features=Features(kinds)).to_parquet(folder / file)
                header += [f"  - split: {split}", f"    path: {file}"]
        text = "# Built-in GLUE-shaped corpus of increlora\n\nSynthetic; not comparable with the real GLUE."
        (folder / "README.md").write_text("\n".join([*header, "---", text, ""]), encoding="utf-8")
