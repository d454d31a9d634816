"""Evaluation: one code path for validation during training, `jobs/evaluate.py` and the tables. One module a kind of evaluation."""
