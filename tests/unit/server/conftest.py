"""The tiny models, opened but not started, for what needs a model's facts and tokenizer but no answers."""

from pathlib import Path

import pytest

from polyhead.server.bundle import read_bundle
from polyhead.server.config import Settings
from polyhead.server.loader import LiveModel, open_model
from polyhead.server.metrics import Metrics, ModelMetrics
from tests import bundles


def open_tiny(name: str) -> LiveModel:
    bundle = read_bundle(bundles.models_folder() / name / "1")
    observer = ModelMetrics(Metrics(), name, "1", slots=2)
    return open_model(name, "1", bundle, Settings(models=Path("unused"), slots=2), observer)


@pytest.fixture(scope="session")
def generator() -> LiveModel:
    return open_tiny(bundles.GENERATOR)


@pytest.fixture(scope="session")
def classifier() -> LiveModel:
    return open_tiny(bundles.CLASSIFIER)


@pytest.fixture(scope="session")
def embedder() -> LiveModel:
    return open_tiny(bundles.EMBEDDER)
