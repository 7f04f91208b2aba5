"""kdctl: knowledge-distillation studies from one YAML file.

The commands are thin; everything they do is a function here:
`launch.plan_study` (a study's plan), `launch.launch`, `results.read_trials`, `results.read_epochs`, `report.render`,
`inventory.list_teachers`, `inventory.verify_teacher`, `spec.load_study`, `schema.study_schema`.
"""
