"""Triage, calculators and medication checks: pure rules over the layers; nothing here awaits or reads a clock."""
