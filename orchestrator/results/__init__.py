"""Results: the rows of trials and epochs in Parquet, statistics over them, tables in every format, SQL.

Imports `study`, `storage` and the layers below. A row is written in `results`; `summary` owns every statistic.
"""
