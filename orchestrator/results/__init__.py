"""Results: the rows of trials and epochs in Parquet, statistics over them, tables in every format, SQL.

Imports `study`, `storage` and the layers below. `store` writes and reads rows; `summary` owns every statistic. `tables`
prints the tables, of which `paper_table` is the first; `frames` gives them to notebooks.
"""
