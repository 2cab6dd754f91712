"""What holds the distribution together: one namespace package, pinned versions, and documents that match the code."""

import re
import tomllib
from pathlib import Path

import pytest

from polyhead.server.config import Settings, flag
from polyhead.server.metrics import PREFIX, Metrics
from polyhead.v1 import inference_pb2, model_pb2

ROOT = Path(__file__).parents[2]
PORTIONS = ("protos", "server", "export", "client")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SAID_OTHERWISE = {
    "models",
    "versions",
    "allow_model_control",
    "on_demand",
    "max_model_memory",
    "threads",
    "slot_tokens",
}
"""Settings whose default the table tells in words."""


@pytest.mark.parametrize("portion", PORTIONS)
def test_no_portion_closes_the_namespace(portion: str) -> None:
    """A `polyhead/__init__.py` in one folder would hide the other three."""
    assert (ROOT / portion / "polyhead").is_dir()
    assert not (ROOT / portion / "polyhead" / "__init__.py").exists()


@pytest.mark.parametrize("portion", PORTIONS)
def test_every_package_tells_type_checkers_that_it_is_typed(portion: str) -> None:
    packages = [path for path in (ROOT / portion / "polyhead").iterdir() if (path / "__init__.py").exists()]
    assert packages
    assert [path.name for path in packages if not (path / "py.typed").exists()] == []


def test_every_requirement_is_pinned_to_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {normal(line.split("==")[0]) for line in lines if re.fullmatch(r"[\w.-]+==[\w.]+", line)}
    extras = PROJECT["optional-dependencies"].values()
    wanted = {normal(name_of(line)) for part in (PROJECT["dependencies"], *extras) for line in part}
    assert wanted - pinned == {"polyhead"}
    assert len(pinned) == len([line for line in lines if line and not line.startswith("#")])


def test_the_image_has_the_version_of_the_distribution() -> None:
    assert f"image: polyhead-server:{PROJECT['version']}\n" in (ROOT / "docker-compose.yml").read_text()


def test_every_setting_is_documented_with_its_default() -> None:
    rows = table_rows("docs/operating.md", "flag")
    assert list(rows) == [flag(name) for name in Settings.model_fields]
    for name, field in Settings.model_fields.items():
        if name not in SAID_OTHERWISE:
            assert rows[flag(name)][0] == f"`{field.default}`", name


def test_every_metric_is_documented_with_its_type() -> None:
    rows = table_rows("docs/operating.md", "metric").items()
    documented = {name: row[0] for names, row in rows for name in names.split("`, `")}
    families = [family for family in Metrics().registry.collect() if family.name.startswith(PREFIX)]
    assert documented == {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type for family in families
    }


@pytest.mark.parametrize("file", [inference_pb2, model_pb2])
def test_every_method_is_documented(file: object) -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    for service in file.DESCRIPTOR.services_by_name.values():  # type: ignore[attr-defined]
        assert [m.name for m in service.methods if f"`{m.name}`" not in text] == []


def table_rows(document: str, first_heading: str) -> dict[str, list[str]]:
    """A table's rows by what stands in back quotes in their first column."""
    table = (ROOT / document).read_text().split(f"\n| {first_heading} |", 1)[1].split("\n\n", 1)[0]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row[1:] for row in cells}


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=~! ;]", requirement, maxsplit=1)[0]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
