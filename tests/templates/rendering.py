"""Render a role's template as Ansible would, with the role's own defaults and constants."""

from pathlib import Path
from typing import Any

import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader
from ansible.template import Templar, trust_as_template

REPOSITORY = Path(__file__).resolve().parents[2]
ROLES = REPOSITORY / "roles"

filter_loader.add_directory(str(REPOSITORY / "plugins" / "filter"))


def _trusted(value: Any) -> Any:
    """Mark every string of a value as a template that the repository wrote."""
    if isinstance(value, str):
        return trust_as_template(value)
    if isinstance(value, dict):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    return value


def render(role: str, template: str, **variables: Any) -> str:
    """Return the text of `roles/<role>/templates/<template>`; `variables` win over the role's defaults and vars."""
    values: dict[str, Any] = {"ansible_managed": "Ansible managed", "groups": {}, "hostvars": {}}
    for folder in ("defaults", "vars"):
        values |= yaml.safe_load((ROLES / role / folder / "main.yml").read_text())
    text = (ROLES / role / "templates" / template).read_text()
    templar = Templar(loader=DataLoader(), variables=_trusted(values | variables))
    rendered = templar.template(trust_as_template(text.removesuffix("\n")))
    assert isinstance(rendered, str)
    return rendered + "\n"
