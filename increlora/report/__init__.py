"""Records in, tables and figures out.

- `results`       a study with its records: tidy frame, rows, scores over seeds, and the notes below a table
- `statistics`    intervals, paired tests, Holm's correction, the smallest visible difference
- `tables`        Tables 1-3 and the table of variants; which tables a study has
- `extra_tables`  tables that the paper lacks: checkpoint rules, headroom, selection of settings, cost
- `claims`        the paper's claims (`claims.csv`) and what the study says about each
- `figures`       Figures 4-6, growth of ranks, training curves, claims
- `published`     the papers' values (`published.csv`), each with its source
- `render`        a table as CSV, Markdown, LaTeX or text for a terminal

Records are the only input: tables and figures can be rebuilt from them alone.
"""
