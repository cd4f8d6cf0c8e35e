"""Importing this module finds `moe_graph.meta` and `moe_graph.converters` where Python has taken the package from a checkout.

They lie beside the package's folder there. `python -m moe_graph` in a checkout, and a script in it, find that folder before the installed
package, whose wheel has both inside. An editable installation finds them by itself.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_package = sys.modules["moe_graph"]
_beside = Path(str(_package.__file__)).resolve().parents[1]

if importlib.util.find_spec("moe_graph.meta") is None and (_beside / "meta").is_dir():
    _package.__path__.append(str(_beside))
