"""Choosing a Plan: sensitivity and measured latency, exact allocation, Optuna, finalists measured again."""
