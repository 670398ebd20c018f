"""Edges and the ledger of their traffic."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "edges",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("last_seen", sa.Double, nullable=False),
        sa.Column("active", sa.JSON, nullable=False),
    )
    op.create_table(
        "traffic",
        sa.Column("edge", sa.String(64), sa.ForeignKey("edges.name"), primary_key=True),
        sa.Column("report", sa.String(64), primary_key=True),
        sa.Column("bundle", sa.String(64), primary_key=True),
        sa.Column("minute", sa.BigInteger, nullable=False),
        *(
            sa.Column(name, sa.BigInteger, nullable=False)
            for name in ("images", "prompt_bytes", "uses", "png_bytes", "pull_bytes")
        ),
    )
    op.create_index("traffic_by_minute", "traffic", ["minute"])
    op.create_index("traffic_by_edge", "traffic", ["edge", "minute"])
