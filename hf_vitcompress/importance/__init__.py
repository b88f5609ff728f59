"""Learned importance scores of neurons and heads."""
