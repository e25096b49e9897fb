# What the study will cost, the check that its budgets can be, and the training jobs: one per method, cell or run.

ONE_RUN = EXECUTION.job == "run"


rule plan:
    output:
        PLAN,
    message:
        f"{NAME}: runs, parameters and hours, to {PLAN}"
    log:
        f"logs/{NAME}/plan.log",
    conda:
        "../envs/increlora.yaml"
    localrule: True
    params:
        config=config_arguments(),
        study=STUDY.digest,
    shell:
        "python -m increlora --quiet plan {params.config} --csv {output} > {log} 2>&1"


rule check:
    output:
        touch(CHECKED),
    message:
        f"{NAME}: checking budgets and data"
    log:
        f"logs/{NAME}/check.log",
    conda:
        "../envs/increlora.yaml"
    localrule: True
    params:
        config=config_arguments(),
    shell:
        "python -m increlora --quiet check {params.config} > {log} 2>&1"


if EXECUTION.job == "method":

    for KIND, VARIANTS in variants_by_kind().items():

        rule:
            name:
                f"train_{KIND}"
            input:
                variants_input(VARIANTS),
            output:
                variants_records(VARIANTS),
            message:
                f"{NAME}: training {KIND}, {len(variants_records(VARIANTS))} runs"
            log:
                f"logs/{NAME}/train/{KIND}.log",
            conda:
                "../envs/increlora.yaml"
            threads: EXECUTION.threads
            resources:
                gpu=EXECUTION.gpu,
                mem_mb=EXECUTION.mem_mb,
                runtime=EXECUTION.runtime * len(variants_records(VARIANTS)),
            params:
                # depends on `output` in form only: such a parameter is not compared, the digests below are
                config=lambda wildcards, output: config_arguments(),
                methods=VARIANTS,
                runs=[run.digest for run in STUDY.runs() if run.method in VARIANTS],
            shell:
                "python -m increlora --quiet run {params.config} --method {params.methods} 2>&1 | tee {log}"

else:

    rule train:
        input:
            lambda wildcards: job_input(job_cell(wildcards)),
        output:
            RECORD if ONE_RUN else expand(RECORD, seed=STUDY.seeds, allow_missing=True),
        message:
            f"{NAME}: training {{wildcards.method}} on {{wildcards.task}}, budget {{wildcards.budget}}"
        log:
            TRAIN_LOG,
        conda:
            "../envs/increlora.yaml"
        threads: EXECUTION.threads
        resources:
            gpu=EXECUTION.gpu,
            mem_mb=EXECUTION.mem_mb,
            runtime=EXECUTION.runtime * (1 if ONE_RUN else len(STUDY.seeds)),
        params:
            settings=lambda wildcards: job_settings(job_cell(wildcards)),
            seeds=lambda wildcards: job_cell(wildcards).seeds,
            ranks_from=lambda wildcards: job_sources(job_cell(wildcards)),
        shell:
            "python -m increlora --quiet train --settings {params.settings:q} --seeds {params.seeds} "
            "--records {output:q} --ranks-from {params.ranks_from:q} 2>&1 | tee {log}"
