"""A study, in the order in which one comes about:

- `config`    the typed form of a YAML file; `load` reads files
- `grid`      trials of settings become variants
- `cells`     the artefacts' cells: which task, variant and budget they show
- `settings`  the settings of each run
- `checks`    before training, without the backbone; `budgets` with its real shapes; `plan` what it will cost
- `speed`     how fast this machine trains it, for the plan
- `train`     runs one after the other in a process; `jobs` how the workflow packs them
- `verify`    after training: whether the records are those of the study

Records become tables and figures in `increlora.report`.
"""
