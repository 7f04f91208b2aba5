"""kdctl: knowledge-distillation studies from one YAML file.

The commands are thin; everything they do is a function here: `launch.plan_study`, `launch.launch`,
`results.store.read_trials`, `results.store.read_epochs`, `results.tables.render`, `results.frames.read_paper_table`,
`teachers.inventory.list_teachers`, `teachers.inventory.verify_teacher`, `study.reader.load_study`,
`study.schema.study_schema`.
"""
