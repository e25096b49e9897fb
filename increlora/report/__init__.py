"""Records in, tables and figures out.

- `frame`       records on disk -> one tidy frame (a row per run, checkpoint rule and metric)
- `results`     a study with its records: rows, scores, differences, and the notes below a table
- `statistics`  intervals, paired tests, Holm's correction, the smallest visible difference
- `tables`      Tables 1-3 and variants; which tables a study has
- `protocol`    checkpoint rules, headroom, selection of settings, cost
- `claims`      the paper's claims (`claims.csv`) and what the study says about each
- `figures`     Figures 4-6, growth of ranks, training, claims
- `published`   the papers' values (`published.csv`), each with its source
- `render`      a table as Markdown, LaTeX or text for a terminal

Records alone are the input: whatever they do not say, no table says.
"""
