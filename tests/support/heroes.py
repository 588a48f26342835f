"""Heroes of the tutorial, as a client sends them."""

import json
from typing import Any

DEADPOND: dict[str, Any] = {"name": "Deadpond", "secret_name": "Dive Wilson"}
DEADPOND_JSON = json.dumps(DEADPOND).encode()
RUSTY_MAN: dict[str, Any] = {"name": "Rusty-Man", "age": 48, "secret_name": "Tommy Sharp"}
