"""`minordpo inspect`: what is wrong with preference pairs, before training on them.

`lines.py` reads files in parts, `measuring.py` and `workers.py` measure each pair, `duplicates.py` and `test_set.py`
compare pairs, `table.py` holds what was found, `rules.py` and `filtering.py` leave pairs out, and `summary.py`,
`page.py` and `spreadsheet.py` write the report. `run.py` is the whole command.
"""
