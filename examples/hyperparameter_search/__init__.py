"""Hyper-parameters searched for by Optuna and by hyperopt, with trainings as trials."""
