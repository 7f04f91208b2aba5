"""A study: from the file that a person wrote to a plan of trials, and the plans that a storage remembers.

`document` reads YAML with its places, `keys` is the table of all settings, `spec` checks a file against it, `plan`
expands it into trials, `studies` stores and loads plans. Imports `data`'s table of datasets, `pretrained`, `storage`
and the layers below. Neither torch nor Ray is loaded here. Start with `spec.load_study` and `plan.make_plan`.
"""
