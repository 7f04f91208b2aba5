"""kdctl: knowledge-distillation studies from one YAML file.

The commands are thin; everything they do is a function here:
`spec.load_study`, `plan.make_plan`, `launch.launch`, `results.read_trials`, `report.render`, `teacher.list_teachers`.
"""
