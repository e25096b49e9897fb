# The pretrained model, where the study makes its own. It is kept by the digest of its settings, outside of results/.

if BACKBONE:

    rule backbone:
        input:
            lambda wildcards: [] if Path(*BACKBONE).exists() else CHECKED,
        output:
            BACKBONE,
        message:
            f"{NAME}: pretraining the backbone (a few minutes)"
        log:
            f"logs/{NAME}/backbone.log",
        conda:
            "../envs/increlora.yaml"
        threads: EXECUTION.threads
        resources:
            gpu=EXECUTION.gpu,
            mem_mb=EXECUTION.mem_mb,
            runtime=EXECUTION.runtime,
        params:
            # Snakemake does not compare parameters that take `output`: of those here the settings alone decide.
            config=lambda wildcards, output: CONFIG,
            settings=lambda wildcards: json.dumps(STUDY.backbone.pretrain, sort_keys=True),
            folder=subpath(output[0], parent=True),
        shell:
            "python -m increlora --quiet pretrain {params.config:q} --out {params.folder:q} 2>&1 | tee {log:q}"
