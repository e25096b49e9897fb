# Entry point: the study of config/config.yaml, or of the files named with --configfile.
#
# The workflow itself lies in workflow/. It is used as a module, not included, because a file that only includes has no
# default target. Handlers do not come along with a module, hence `onstart` here.

import sys

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
    shell("{sys.executable} -m increlora store adopt")
