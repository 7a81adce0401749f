"""The form of the job store's tables, by number."""

SCHEMA_VERSION = 3
