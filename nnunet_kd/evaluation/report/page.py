"""What the HTML pages share: templates in which a missing value is an error, and pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template


def template(name: str, **filters: Callable) -> Template:
    """A template of evaluation/report/templates with filters of its own; what it is given is escaped."""
    environment = Environment(
        loader=PackageLoader("nnunet_kd.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def data_uri(picture: Path) -> str:
    """A PNG file as a data URI, so that the page needs no second file."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
