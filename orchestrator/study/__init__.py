"""A study: from the file that a user wrote to a plan of trials, and the plans that a storage keeps.

`document` reads YAML with the location of every value, `fields` is the table of all settings, `reader` checks a file
against it and returns `values`, `plan` expands these into trials, `stored_studies` stores and loads plans. Imports
`training` for its tables of optimizers and schedules, `data` for that of datasets, `pretrained`, `storage` and the
layers below; loads neither torch nor Ray. Start with `reader`, then `plan`.
"""
