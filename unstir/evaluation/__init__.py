"""Evaluation: numbers about models."""
