"""Accounts have a weight: their share of the service beside that of the others."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Those that exist get equal shares."""
    op.add_column("accounts", sa.Column("weight", sa.Float(), nullable=False, server_default="1"))
