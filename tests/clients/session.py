"""The tutorial's session with the generated Python client: python session.py URL."""

import sys

from heroes_client import Client
from heroes_client.api.health import is_ready
from heroes_client.api.heroes import create_hero, delete_hero, read_hero, read_heroes, update_hero
from heroes_client.models import Error, Health, HeroCreate, HeroDeleted, HeroPublic, HeroUpdate, InvalidInput


def main(url: str) -> None:
    """Create, list, update and delete heroes, and distinguish the responses by type."""
    with Client(base_url=url) as client:
        ready = is_ready.sync(client=client)
        assert isinstance(ready, Health)
        assert ready.status == "ready"

        created = create_hero.sync(client=client, body=HeroCreate(name="Deadpond", secret_name="Dive Wilson"))
        assert isinstance(created, HeroPublic)
        assert created.age is None

        listed = read_heroes.sync(client=client, limit=10)
        assert isinstance(listed, list)
        assert listed == [created]

        changed = update_hero.sync(created.id, client=client, body=HeroUpdate(age=28))
        assert isinstance(changed, HeroPublic)
        assert (changed.name, changed.age) == ("Deadpond", 28)

        refused = update_hero.sync(created.id, client=client, body=HeroUpdate(name=""))
        assert isinstance(refused, InvalidInput)
        assert refused.detail[0].loc == ["body", "name"]

        deleted = delete_hero.sync(created.id, client=client)
        assert isinstance(deleted, HeroDeleted)
        assert deleted.ok

        missing = read_hero.sync(created.id, client=client)
        assert isinstance(missing, Error)
        assert missing.detail == "Hero not found"


if __name__ == "__main__":
    main(sys.argv[1])
