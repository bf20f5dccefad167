"""The lockfile of the Node clients installs anywhere: no registry's name in it, and no platform's package missing."""

from __future__ import annotations

import json
from typing import Any

from node_tools import NODE_FOLDER


def locked_packages() -> dict[str, dict[str, Any]]:
    """Path below the project -> what the lockfile says of the package there."""
    lock = json.loads((NODE_FOLDER / "package-lock.json").read_text(encoding="utf-8"))
    return dict(lock["packages"])


def test_no_package_is_tied_to_one_registry() -> None:
    resolved = {path: package["resolved"] for path, package in locked_packages().items() if "resolved" in package}
    assert resolved == {"node_modules/tampu-workers": "../../../integrations/workers"}


def test_the_packages_of_other_platforms_are_locked_too() -> None:
    # `npm ci` refuses a lockfile without them, even where they would not be installed.
    packages = locked_packages()
    wanted = {name for package in packages.values() for name in package.get("optionalDependencies", {})}
    locked = {path.rpartition("node_modules/")[2] for path in packages}
    assert wanted - locked == set()
