"""Reconciliation in numbered phases: gather, decide (core), apply, report. Effects go through ports."""
