"""Records in, tables and figures out.

- `frame`       records on disk -> one tidy frame (a row per run, checkpoint and metric)
- `results`     a study with its records: rows of tables, and what the seeds say about each number
- `statistics`  mean, spread and intervals over seeds
- `published`   the papers' values, each with its source
- `tables`      Tables 1-3, the selection of settings, published values; `cost` the table of training costs
- `notes`       what stands below a table; `render` a table as Markdown, LaTeX or text for a terminal
- `figures`     Figures 4-6 and the growth of ranks; `style` says how they look

Records alone are the input: whatever they do not say, no table says.
"""
