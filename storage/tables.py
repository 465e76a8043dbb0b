"""The row store's tables. Rows only: bodies and adapter files live in the object store.

account 1-n token, account 1-n finetune 1-n version 1-n file, finetune 1-n alias, account 1-n batch, account 1-n log.
Times are Unix seconds (float, UTC). Ids are random 128-bit hex (accounts, tokens), UUIDv4 (finetunes, batches), UUIDv7
(logs).
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

# Every constraint has a name, so that a later migration can speak of it.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("weight", Float, nullable=False, server_default="1"),  # share of the service
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account_id", ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String(128), nullable=False),
    # SHA-256 of the token. A token has 256 random bits, so no salt or slow hash is needed to make it safe at rest.
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("permissions", JSON, nullable=False),
    Column("status", String(16), nullable=False),  # active | disabled
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
)

finetunes = Table(
    "finetunes",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False),
    Column("name", String(128), nullable=False),
    Column("model", String(128), nullable=False),
    Column("description", Text, nullable=False),
    Column("public", Boolean, nullable=False),
    Column("pinned", Boolean, nullable=False, server_default="0"),  # kept in memory by the operator's word
    Column("last_version", Integer, nullable=False, server_default="1"),  # numbers are never given twice
    Column("created_at", Float, nullable=False),
    Column("modified_at", Float, nullable=False),
    UniqueConstraint("account_id", "name"),
)

finetune_versions = Table(
    "finetune_versions",
    metadata,
    Column("finetune_id", ForeignKey("finetunes.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("status", String(16), nullable=False),  # pending | ready | failed
    Column("reasons", JSON, nullable=False),  # of `failed`: a list of sentences
    Column("activate", Boolean, nullable=False),  # whether it becomes the default version as soon as it is ready
    Column("digest", String(64), index=True),
    Column("object_key", String(256), index=True),
    Column("size_bytes", BigInteger),
    Column("rank", Integer),
    Column("modules", JSON),
    Column("created_at", Float, nullable=False),
    Column("modified_at", Float, nullable=False),
    Column("last_used_at", Float),
    Column("requests", BigInteger, nullable=False, server_default="0"),
)

finetune_files = Table(
    "finetune_files",
    metadata,
    Column("finetune_id", String(36), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("file_name", String(64), primary_key=True),
    Column("object_key", String(256), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("uploaded_at", Float, nullable=False),
    ForeignKeyConstraint(
        ["finetune_id", "version"], ["finetune_versions.finetune_id", "finetune_versions.number"], ondelete="CASCADE"
    ),
)

# What a reference means: "default" for the bare name or id, other names for `name@alias`.
finetune_aliases = Table(
    "finetune_aliases",
    metadata,
    Column("finetune_id", ForeignKey("finetunes.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("canary", Integer),  # the version that `canary_percent` of the requests get
    Column("canary_percent", Float, nullable=False, server_default="0"),
)

# Requests to be answered later. Requests and answers are objects under the batch's id.
batches = Table(
    "batches",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", ForeignKey("accounts.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("token_id", String(32), nullable=False),
    Column("model", String(128), nullable=False),
    Column("status", String(16), nullable=False),  # queued | running | done
    Column("num_requests", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("finished_at", Float),
)

logs = Table(
    "logs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("account_id", String(32), nullable=False),
    Column("gateway", String(64), nullable=False),
    Column("token_id", String(32), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("path", Text, nullable=False),
    Column("provider", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("model_type", String(64), nullable=False),
    Column("lora", String(128)),
    Column("adapter_id", String(36)),
    Column("adapter_digest", String(64)),
    Column("status_code", Integer, nullable=False),
    Column("success", Boolean, nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("error_code", Integer),
    Column("cached", Boolean, nullable=False),
    Column("streamed", Boolean, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    Column("first_byte_ms", Integer),
    Column("tokens_in", Integer, nullable=False),
    Column("tokens_out", Integer, nullable=False),
    Column("cached_tokens", Integer, nullable=False),
    Column("cost", Float, nullable=False),
    Column("step", Integer, nullable=False),
    Column("request_content_type", String(128), nullable=False),
    Column("response_content_type", String(128), nullable=False),
    Column("request_size", Integer, nullable=False),
    Column("response_size", Integer, nullable=False),
    Column("trace_id", String(32)),
    Column("user_agent", String(256)),
    Column("metadata", JSON),
    Column("timing", JSON),
    Column("feedback", Integer),  # -1 | 1
    Column("score", Float),
    # Where the bodies are: the record's place in a write-ahead segment, or, once the segment is sealed, its Parquet.
    Column("segment_id", String(64), nullable=False),
    Column("segment_offset", BigInteger, nullable=False),
    Index("logs_by_time", "account_id", "gateway", "created_at", "id"),
)

log_segments = Table(
    "log_segments",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("shipped_bytes", BigInteger, nullable=False),  # every record before this offset has its row
    Column("bodies_key", String(256)),  # object key of the Parquet with the bodies, once the segment is sealed
)
