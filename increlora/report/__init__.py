"""Records in, tables and figures out.

- `frame`       records on disk -> one tidy frame (a row per run, checkpoint and metric)
- `statistics`  mean, spread and intervals over seeds
- `published`   the papers' values, each with its source
- `summary`     one table cell from the frame: which seeds are there, what they say, what went wrong
- `tables`      Tables 1-3 of the paper; `cost` the table of training costs
- `render`      a table as Markdown, LaTeX or terminal text
- `figures`     Figures 4-6 and the growth figure; `plots` draws them, `style` says how they look
- `show`        tables for the terminal

Records alone are the input: whatever they do not say, no table says.
"""
