"""Figures without their files."""

import matplotlib.pyplot as plt
import pytest


@pytest.fixture
def kept(monkeypatch):
    """Figures that were drawn, still open."""
    figures = []
    monkeypatch.setattr("experiments.figures.plt.close", figures.append)
    yield figures
    monkeypatch.undo()
    for figure in figures:
        plt.close(figure)
