"""The row store's schema, step by step. `env.py` runs inside alembic; `storage.schema` is what starts it."""
