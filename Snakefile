# Entry point: the study of config/config.yaml, or of the files named with --configfile.
#
# The workflow itself lies in workflow/. It is used as a module, not included, because a file that only includes has no
# default target. Handlers do not come along with a module, hence `onstart` and `onerror` here.

import sys

from increlora.study.jobs import config_arguments

if "study" not in config:

    configfile: "config/config.yaml"


module increlora:
    snakefile:
        "workflow/Snakefile"
    config:
        config


use rule * from increlora


onstart:
    # Finished runs that came with a clone: keep them where Snakemake cannot delete them before their job starts.
    shell("{sys.executable:q} -m increlora store adopt")


onerror:
    study = config_arguments(workflow.configfiles, config)
    shell("{sys.executable:q} -m increlora failures {study:q} >&2")
