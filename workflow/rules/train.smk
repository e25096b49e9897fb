# What the study will cost, the check that its budgets can be, and the training jobs: one per run or per kind of method.


rule plan:
    input:
        [SPEED] if SPEED.exists() else [],
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
        config=configuration,
        study=STUDY.digest,
    shell:
        "python -m increlora --quiet plan {params.config:q} --csv {output:q} 2>&1 | tee {log:q}"


rule check:
    output:
        touch(CHECKED),
    message:
        f"{NAME}: checking budgets, model and data"
    log:
        f"logs/{NAME}/check.log",
    conda:
        "../envs/increlora.yaml"
    localrule: True
    params:
        config=configuration,
        # Snakemake knows only after it has read this file whether training jobs run on this machine or on a cluster's.
        # It does not compare parameters that take `output`; the config decides.
        here=lambda wildcards, output: "--here" if workflow.local_exec else "",
    shell:
        "python -m increlora --quiet check {params.here} {params.config:q} 2>&1 | tee {log:q}"


if EXECUTION.job == "method":

    for JOB in JOBS.values():

        rule:
            name:
                f"train_{JOB.name}"
            input:
                lambda wildcards, job=JOB: job_needs(job),
            output:
                JOB.records,
            message:
                f"{NAME}: training {JOB.name}, {len(JOB.runs)} runs"
            log:
                jobs.log_of(NAME, JOB.name),
            conda:
                "../envs/increlora.yaml"
            threads: EXECUTION.threads
            resources:
                gpu=EXECUTION.gpu,
                mem_mb=EXECUTION.mem_mb,
                runtime=EXECUTION.runtime * len(JOB.runs),
            params:
                # Snakemake does not compare parameters that take `output`: of those here the digests alone decide.
                config=lambda wildcards, output: CONFIG,
                chosen=JOB.arguments,
                runs=JOB.digests,
            shell:
                "python -m increlora --quiet run {params.config:q} {params.chosen:q} 2>&1 | tee {log:q}"

else:

    rule train:
        input:
            lambda wildcards: job_needs(run_job(wildcards)),
        output:
            f"results/runs/{NAME}/{{task}}/{{method}}/{{budget}}/seed{{seed}}.json",
        message:
            f"{NAME}: training {{wildcards.method}} on {{wildcards.task}}, budget {{wildcards.budget}}, seed {{wildcards.seed}}"
        log:
            jobs.log_of(NAME, "{task}/{method}/{budget}/seed{seed}"),
        conda:
            "../envs/increlora.yaml"
        threads: EXECUTION.threads
        resources:
            gpu=EXECUTION.gpu,
            mem_mb=EXECUTION.mem_mb,
            runtime=EXECUTION.runtime,
        params:
            config=lambda wildcards, output: CONFIG,
            chosen=lambda wildcards: run_job(wildcards).arguments,
            runs=lambda wildcards: run_job(wildcards).digests,
        shell:
            "python -m increlora --quiet run {params.config:q} {params.chosen:q} 2>&1 | tee {log:q}"
