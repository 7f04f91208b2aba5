"""What the runs of a study show: `comparisons` tests settings against each other, `conclusions` says it in sentences.

Only settings of one student, teacher and dataset are compared, each also with the same training without a teacher.
"""
