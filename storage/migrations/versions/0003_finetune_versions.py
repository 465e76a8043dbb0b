"""Finetunes have versions, and aliases that say which version a reference means.

What a finetune was becomes its version 1, with its files; a ready one is what its name means.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_MOVED = ("status", "reasons", "digest", "object_key", "size_bytes", "rank", "modules")


def upgrade() -> None:
    """Nothing is lost; object keys stay as they are."""
    op.create_table(
        "finetune_versions",
        sa.Column("finetune_id", sa.String(length=36), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("activate", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=True),
        sa.Column("object_key", sa.String(length=256), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("modules", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.Column("modified_at", sa.Float(), nullable=False),
        sa.Column("last_used_at", sa.Float(), nullable=True),
        sa.Column("requests", sa.BigInteger(), nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(
            ["finetune_id"], ["finetunes.id"], name=op.f("fk_finetune_versions_finetune_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("finetune_id", "number", name=op.f("pk_finetune_versions")),
    )
    op.create_index(op.f("ix_finetune_versions_digest"), "finetune_versions", ["digest"])
    op.create_index(op.f("ix_finetune_versions_object_key"), "finetune_versions", ["object_key"])
    op.create_table(
        "finetune_aliases",
        sa.Column("finetune_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("canary", sa.Integer(), nullable=True),
        sa.Column("canary_percent", sa.Float(), nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(
            ["finetune_id"], ["finetunes.id"], name=op.f("fk_finetune_aliases_finetune_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("finetune_id", "name", name=op.f("pk_finetune_aliases")),
    )
    moved = ", ".join(_MOVED)
    op.execute(
        f"INSERT INTO finetune_versions (finetune_id, number, activate, created_at, modified_at, {moved}) "  # noqa: S608 - names from above
        f"SELECT id, 1, 1, created_at, modified_at, {moved} FROM finetunes"
    )
    op.execute(
        "INSERT INTO finetune_aliases (finetune_id, name, version) "
        "SELECT id, 'default', 1 FROM finetunes WHERE status = 'ready'"
    )
    _rebuild_files()
    with op.batch_alter_table("finetunes") as batch:
        for name in _MOVED:
            batch.drop_column(name)
        batch.add_column(sa.Column("pinned", sa.Boolean(), nullable=False, server_default="0"))
        batch.add_column(sa.Column("last_version", sa.Integer(), nullable=False, server_default="1"))


def _rebuild_files() -> None:
    op.rename_table("finetune_files", "finetune_files_old")
    op.create_table(
        "finetune_files",
        sa.Column("finetune_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("file_name", sa.String(length=64), nullable=False),
        sa.Column("object_key", sa.String(length=256), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("uploaded_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["finetune_id", "version"],
            ["finetune_versions.finetune_id", "finetune_versions.number"],
            name=op.f("fk_finetune_files_finetune_id_version"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("finetune_id", "version", "file_name", name=op.f("pk_finetune_files")),
    )
    op.create_index(op.f("ix_finetune_files_object_key"), "finetune_files", ["object_key"])
    columns = "file_name, object_key, size_bytes, sha256, uploaded_at"
    op.execute(
        f"INSERT INTO finetune_files (finetune_id, version, {columns}) "  # noqa: S608 - names from above
        f"SELECT finetune_id, 1, {columns} FROM finetune_files_old"
    )
    op.drop_table("finetune_files_old")
