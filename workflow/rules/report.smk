# Records to tables and figures, and the papers' values.


rule published:
    output:
        expand("results/published.{suffix}", suffix=["csv", "md", "tex"]),
    message:
        "published values, to results/"
    log:
        "logs/published.log",
    conda:
        "../envs/increlora.yaml"
    localrule: True
    shell:
        "python -m increlora --quiet published 2>&1 | tee {log:q}"


rule tables:
    input:
        RECORDS,
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
        config=configuration,
        study=STUDY.digest,
    shell:
        "python -m increlora --quiet tables {params.config:q} 2>&1 | tee {log:q}"


if FIGURES:

    rule figures:
        input:
            jobs.figure_records(STUDY),
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
            config=configuration,
            study=STUDY.digest,
        shell:
            "python -m increlora --quiet figures {params.config:q} 2>&1 | tee {log:q}"
