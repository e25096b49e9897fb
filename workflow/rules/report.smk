# Records to tables and figures.

TITLES = {
    "table1": "Table 1",
    "table2": "Table 2",
    "table3": "Table 3",
    "cost": "Cost",
    "figure4": "Figure 4",
    "figure5": "Figure 5",
    "figure6": "Figure 6",
    "growth": "Growth of ranks",
}
SHOWN = {name: [path for cell in cells for path in records(cell)] for name, cells in artefact_cells(STUDY).items()}
ALL_RECORDS = [path for cell in CELLS.values() for path in records(cell)]
TABLES = {name: f"results/{NAME}_{name}" for name in ("table1", "table2", "table3", "cost") if name in {*SHOWN, "cost"}}
FIGURES = {name: f"figures/{NAME}_{name}" for name in ("figure4", "figure5", "figure6", "growth") if name in SHOWN}


rule tables:
    input:
        ALL_RECORDS,
    output:
        RUNS,
        [shown(name, stem, "csv", "Tables") for name, stem in TABLES.items()],
        expand("{stem}.{suffix}", stem=TABLES.values(), suffix=["md", "tex"]),
    message:
        f"{NAME}: tables, to results/"
    log:
        f"logs/{NAME}/tables.log",
    conda:
        "../envs/increlora.yaml"
    localrule: True
    params:
        config=config_arguments(),
        study=STUDY.digest,
    shell:
        "python -m increlora --quiet tables {params.config} > {log} 2>&1"


if FIGURES:

    rule figures:
        input:
            [path for name in FIGURES for path in SHOWN[name]],
        output:
            [shown(name, stem, "png", "Figures") for name, stem in FIGURES.items()],
            expand("{stem}.{suffix}", stem=FIGURES.values(), suffix=["pdf", "csv"]),
        message:
            f"{NAME}: figures, to figures/"
        log:
            f"logs/{NAME}/figures.log",
        conda:
            "../envs/increlora.yaml"
        localrule: True
        params:
            config=config_arguments(),
            study=STUDY.digest,
        shell:
            "python -m increlora --quiet figures {params.config} > {log} 2>&1"
