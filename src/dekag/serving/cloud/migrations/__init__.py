"""Every schema that the cloud's database has had, as Alembic's revisions."""
